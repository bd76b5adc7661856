"""Large pictures in tiles: InternVL's grid, exact pixels, sizes without decoding, and what cannot be cut is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from toys import make_template

from unimm.data import tiles as tiles_module
from unimm.data.image import decode_image, image_size, look_uint8
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, Steps
from unimm.data.records import Question, Record, SeenImage, UnreadImage
from unimm.data.template import PromptFormat, Template, Turn
from unimm.data.tiles import TiledImage, Tiles
from unimm.data.views import Conversation
from unimm.sequence import Kind

TEMPLATE = make_template()
SIDE = TEMPLATE.image_size


def template_of(**settings) -> Template:
    return Template(TEMPLATE.tokenizer, PromptFormat(tiles=Tiles(**settings)), SIDE, TEMPLATE.num_positions)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image, form: str, **more) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **more)
    return file.getvalue()


def published_grid(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """InternVL's rule, step by step: all grids by their number of tiles; a nearer aspect ratio wins, and of equal ones the
    later one where the picture fills more than half of it."""
    grids = {(i, j) for n in range(least, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if least <= i * j <= most}
    best, best_off = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - columns / rows)
        if off < best_off or (off == best_off and width * height > 0.5 * side * side * columns * rows):
            best, best_off = (columns, rows), off
    return best


@pytest.mark.parametrize(("least", "most"), [(1, 6), (1, 12), (2, 9), (4, 16)])
def test_the_grid_is_internvls(least: int, most: int) -> None:
    sizes = [(64, 64), (448, 448), (800, 600), (600, 800), (896, 448), (1000, 333), (333, 1000), (1920, 1080), (37, 41)]
    sizes += [tuple(pair) for pair in np.random.default_rng(0).integers(8, 3000, (300, 2)).tolist()]
    for width, height in sizes:
        expected = published_grid(width, height, 448, least, most)
        assert Tiles(most, least).grid(width, height, 448) == expected, (width, height)


def test_grids_that_a_person_can_check() -> None:
    cases = {(256, 128): (4, 2), (256, 192): (4, 3), (256, 256): (4, 4), (64, 64): (1, 1), (60, 64): (1, 1), (128, 256): (2, 4)}
    assert {size: Tiles(16).grid(*size, 64) for size in cases} == cases
    assert Tiles(12).grid(1800, 900, 448) == (4, 2) and Tiles(12).grid(500, 500, 448) == (1, 1)


def test_tiles_are_the_picture_itself_and_the_thumbnail_the_whole() -> None:
    array = noise(3 * SIDE, 2 * SIDE)
    tiled = TiledImage(array, Tiles(6), SIDE)
    assert (tiled.grid, tiled.num_tiles, tiled.has_thumbnail) == ((3, 2), 6, True)
    for number in range(6):
        top, left = SIDE * (number // 3), SIDE * (number % 3)
        assert np.array_equal(tiled.open(number), array[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1))
    assert np.array_equal(tiled.open(6), look_uint8(array, SIDE))


def test_each_tile_stands_behind_its_number_and_each_row_on_a_line() -> None:
    array, tokenizer = noise(2 * SIDE, 2 * SIDE), TEMPLATE.tokenizer
    segments = template_of(max_tiles=4).look(array)
    texts = [tokenizer.decode(segment.ids) for segment in segments if segment.kind == Kind.TEXT]
    assert texts == ["1", "2", "\n3", "4", "\n"]
    assert [segment.kind for segment in segments] == [Kind.TEXT, Kind.PIXELS] * 5
    assert all(segment.condition == "image" for segment in segments if segment.kind == Kind.PIXELS)
    bare = template_of(max_tiles=4, thumbnail=False).look(array)
    assert bare == segments[:8]
    asked = template_of(max_tiles=4).chat([Turn("user", (segments, "What?"))], 5)
    assert (
        asked.length
        == TEMPLATE.chat([Turn("user", (TEMPLATE.look(array), "What?"))], 5).length
        + sum(segment.length for segment in segments)
        - TEMPLATE.num_positions
    )


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE - 1, SIDE), (2, 2)])
def test_a_picture_of_one_tile_is_seen_as_without(size: tuple[int, int]) -> None:
    array = noise(*size)
    assert template_of(max_tiles=9).look(array) == TEMPLATE.look(array)
    assert PromptFormat().tiles is None


def test_a_plan_decodes_nothing_and_a_training_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(3 * SIDE, SIDE)), "JPEG")
    cut_short = data[:-200]
    assert len(template_of().look(cut_short)) == 8, "the head tells the size"
    decoded: list[int] = []
    monkeypatch.setattr(tiles_module, "decode_image", lambda image: decoded.append(1) or decode_image(image))
    sequence = template_of().chat([Turn("user", (template_of().look(data), "What?"))], 5)
    assert not decoded
    first = sequence.opened()
    assert decoded == [1]
    assert sequence.opened() == first and decoded == [1, 1], "and nothing is kept"
    with pytest.raises(ValueError, match="damaged or cut short"):
        template_of().chat([Turn("user", (template_of().look(cut_short), "What?"))], 5).opened()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_picture(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(Image.fromarray(noise(40, 24)), form, exif=exif)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for image in (data, path, str(path), io.BytesIO(data), Image.open(io.BytesIO(data))):
        assert image_size(image) == decode_image(image).size


class Archived(UnreadImage):
    """An image in an archive, which counts how often it is read."""

    reads = 0

    def home(self) -> tuple[Path, str]:
        return Path("shard.tar"), "test_tiles"

    def read(self) -> bytes:
        Archived.reads += 1
        return encoded(Image.fromarray(noise(50, 20)), "PNG")


def test_an_image_in_an_archive_is_read_once_for_its_size() -> None:
    assert [image_size(Archived()) for _ in range(3)] == [(50, 20)] * 3 and Archived.reads == 1


class Seen(SeenImage):
    def features(self) -> np.ndarray:
        return np.zeros((4, 8), dtype=np.float32)

    def original(self) -> np.ndarray:
        return noise(16, 16)


def test_what_cannot_be_cut_is_refused_in_one_sentence(tmp_path: Path) -> None:
    look_at = template_of().look
    for image, reason in (
        (np.zeros((5000, 1, 3), dtype=np.uint8), "1x5000 is more than 200 times as long as it is wide"),
        (b"no picture", "not a JPEG"),
        (encoded(Image.fromarray(noise(9, 9)), "PNG")[:20], "header is damaged|damaged or cut short"),
        ("nowhere.png", "there is no such file"),
        (Seen(), "looked at as one square"),
    ):
        with pytest.raises(ValueError, match=reason) as refused:
            look_at(image)
        assert "\n" not in str(refused.value)
    path = tmp_path / "picture.png"
    Image.fromarray(noise(40, 20)).save(path)
    segments = look_at(path)
    Image.fromarray(noise(20, 40)).save(path)
    with pytest.raises(ValueError, match="it is 20x40, and its tiles were counted for 40x20"):
        segments[1].opened()


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings, reason in (
        ({"max_tiles": 0}, "max_tiles is a whole number of at least 1"),
        ({"max_tiles": 2, "min_tiles": 3}, "not 3 to 2"),
        ({"max_tiles": 1000}, "at most 256"),
        ({"thumbnail": "yes"}, "true or false"),
        ({"most": 3}, "set by max_tiles, min_tiles, thumbnail, not by most"),
    ):
        with pytest.raises(ValueError, match=reason):
            PromptFormat(tiles=settings)  # pyright: ignore[reportArgumentType] - as YAML has it
    with pytest.raises(ValueError, match="sees codes: leave tiles out"):
        PromptFormat(sees="codes", tiles=Tiles())
    with pytest.raises(ValueError, match=r"may take 13 tiles of 64 positions .* 832 in all, and the model was made for 512"):
        Template(TEMPLATE.tokenizer, PromptFormat(tiles=Tiles()), 64, 64, max_positions=512)


class Pictures:
    """Pictures of all sizes as files in memory, of which number 3 is cut short."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Record:
        data = encoded(Image.fromarray(noise(SIDE * (1 + index % 3), SIDE * (1 + index % 2))), "JPEG")
        image = data[:-150] if index == 3 else data
        return Record(f"pictures/{index}", image, questions=(Question("What?", "A picture."),))


def test_a_training_packs_them_and_does_without_a_broken_one() -> None:
    template = template_of(max_tiles=6)
    source = Source("pictures", Pictures(), Conversation(caption_share=0.0))
    steps = Steps(Plan(Mixture([source], template, max_bad=0.5), num_positions=96, num_rows=4))
    batches = [steps[number] for number in range(3)]
    assert {bad.key for batch in batches for bad in batch.bad} == {"pictures/3"}
    lengths = {template.chat([Turn("user", (template.look(Pictures()[n].image), "What?"))]).length for n in range(6)}
    assert len(lengths) > 3, "a row holds pictures of different sizes"
    again = Steps(Plan(Mixture([source], template, max_bad=0.5), num_positions=96, num_rows=4))[2]
    assert all((one.tokens == other.tokens).all() for one, other in zip(batches[2].batches, again.batches, strict=True))
    with pytest.raises(ValueError, match="damaged or cut short"):
        plan = Steps(Plan(Mixture([source], template), num_positions=96, num_rows=4))
        [plan[number] for number in range(3)]
