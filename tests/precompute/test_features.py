"""Stored features stand for images: training on them is training on the images, and they refuse to be taken for others."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import EVERYTHING, Squares, make_config, make_mixture, make_model, make_template, make_trainer

from unimm.batch import Batch, collate
from unimm.checkpoints.fingerprint import tower_fingerprint
from unimm.data.image import look
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, Steps
from unimm.data.records import Record
from unimm.data.stores import tensor_store
from unimm.data.stores.features import ROWS, FeaturedDataset, StoredFeatures, shard_rows
from unimm.data.views import Conversation, Drawing, PlainText
from unimm.models.unified import UnifiedModel
from unimm.precompute.features import encode_features
from unimm.precompute.sharded_pass import PassConfig
from unimm.sequence import Kind, Segment, Sequence
from unimm.training.logbook import read_numbers
from unimm.training.trainable_parts import Stage

FROZEN = Stage("frozen", {name: factor for name, factor in EVERYTHING.lr_scales.items() if name != "vision"})
BF16_BOUND = 2e-2
"""How far a mean loss may move when features are stored in bfloat16: their relative error is up to 2^-9, and the toy's weights
are large."""


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    torch.manual_seed(0)
    return make_model()


@pytest.fixture
def folder(model: UnifiedModel, tmp_path: Path) -> Path:
    return encode_features(model.pixels.tower, Squares(), tmp_path / "features", work=PassConfig(5), dtype="float32").folder


class Encoded(Squares):
    """Squares as files hold them: to be looked at, they have to be decoded."""

    def __getitem__(self, index: int) -> Record:
        record, file = super().__getitem__(index), io.BytesIO()
        Image.fromarray(record.image).save(file, "PNG")
        return record.with_image(file.getvalue())


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no image is decoded any more."""

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    return lambda: monkeypatch.setattr("unimm.data.image.decode_image", refuse)


def featured(model: UnifiedModel, folder: Path, dataset=None) -> FeaturedDataset:
    return FeaturedDataset(dataset or Squares(), folder, tower_fingerprint(model.pixels.tower), 16)


def mixture_of(talk) -> Mixture:
    """As `make_mixture`, with another data set to talk about."""
    sources = make_mixture().sources
    return Mixture([replace(sources[0], dataset=talk), *sources[1:]], make_template())


def batches(mixture: Mixture, num_steps: int = 3) -> list[Batch]:
    steps = Steps(Plan(mixture, 64, 9))
    return [steps[number].batches[0] for number in range(num_steps)]


def losses(model: UnifiedModel, batch: Batch) -> list[float]:
    with torch.no_grad():
        return [float(tally.loss / tally.count) for tally in model(batch).values()]


def test_losses_are_those_of_the_images(model: UnifiedModel, tmp_path: Path, blind: Callable[[], None]) -> None:
    bounds = {"float32": 1e-6, "bfloat16": BF16_BOUND}
    for dtype in bounds:
        encode_features(model.pixels.tower, Encoded(), tmp_path / dtype, dtype=dtype, work=PassConfig(5))
    of_images = batches(make_mixture())
    mixtures = {dtype: mixture_of(featured(model, tmp_path / dtype, Encoded())) for dtype in bounds}
    blind()
    for dtype, bound in bounds.items():
        of_features = batches(mixtures[dtype])
        for ours, theirs in zip(of_features, of_images, strict=True):
            assert (
                len(ours.images.pixels) == 0 and len(ours.images.features) == ours.num_images == len(theirs.images.pixels) > 0
            )
            assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.kinds, theirs.kinds)
            assert losses(model, ours) == pytest.approx(losses(model, theirs), abs=bound, rel=0)


def test_a_training_is_the_same(model: UnifiedModel, tmp_path: Path, blind: Callable[[], None]) -> None:
    """Losses of every step and the weights at the end; no image is decoded, and the tower is never run on one."""
    encode_features(model.pixels.tower, Encoded(), tmp_path / "store", work=PassConfig(5), dtype="float32")
    stored = featured(model, tmp_path / "store", Encoded())
    runs = {}
    for name, talk in (("images", Squares()), ("features", stored)):
        torch.manual_seed(0)
        if talk is stored:
            blind()
        trainer = make_trainer(tmp_path / name, make_config(4, stage=FROZEN), mixture_of(talk))
        seen: list[int] = []
        trainer.model.pixels.tower.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        trainer.fit()
        runs[name] = (read_numbers(tmp_path / name / "metrics.jsonl"), trainer.model.state_dict(), sum(seen))
    (lines, weights, looked), (other_lines, other_weights, other_looked) = runs["images"], runs["features"]
    assert looked > 0 and other_looked == 0
    for ours, theirs in zip(lines, other_lines, strict=True):
        for name in ("loss/text", "loss/codes"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, atol=5e-4, rtol=0)  # AdamW makes much of a rounding


def test_images_and_features_share_a_batch(model: UnifiedModel) -> None:
    """In any order: positions get what belongs to them."""
    pixels = [look(Squares()[index].image, 16) for index in range(4)]
    with torch.no_grad():
        stored = model.pixels.features(torch.from_numpy(np.stack(pixels))).numpy()
    text = Segment.text([5, 6], learn=True)
    plain = [Sequence((Segment.look(one, 4), text)) for one in pixels]
    mixed = [Sequence((Segment.seen(one, 4), text)) if n in (0, 2) else plain[n] for n, one in enumerate(stored)]
    batch, wanted = collate([mixed[:3], mixed[3:]]), collate([plain[:3], plain[3:]])
    images = batch.images
    assert images.is_seen.tolist() == [True, False, True, False] and (len(images.pixels), len(images.features)) == (2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(batch), model.embed(wanted), atol=1e-6, rtol=0)
    assert batch.to("cpu").num_images == 4 and model(batch)[Kind.TEXT].count == 8
    with pytest.raises(ValueError, match=r"\(4, 8\) an image, this vision tower makes \(4, 32\)"):
        model.embed(collate([[Sequence((Segment.seen(np.zeros((4, 8), np.float32), 4), text))]]))


def test_round_trip_in_shards(model: UnifiedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_store, "OPEN_FILES", 2)
    monkeypatch.setattr("unimm.precompute.features.shard_rows", lambda *sizes: shard_rows(*sizes, 5 * 4 * 32 * 4))
    tower = model.pixels.tower
    stored = encode_features(tower, Squares(), tmp_path / "store", source="squares", work=PassConfig(7), dtype="float32")
    names = sorted(path.name for path in (tmp_path / "store").glob("features*"))
    assert names == [f"features-0000{number}.safetensors" for number in range(3)]
    pixels = torch.from_numpy(np.stack([look(Squares()[index].image, 16) for index in range(12)]))
    with torch.no_grad():
        expected = model.pixels.features(pixels).numpy()
    again = pickle.loads(pickle.dumps(stored))  # as worker processes get it
    for order in (range(12), reversed(range(12))):
        for index in order:
            np.testing.assert_allclose(again[index], expected[index], atol=1e-6)
    manifest = stored.manifest
    assert (manifest.source, manifest.num_images, manifest.shard_rows, manifest.precision) == ("squares", 12, 5, "float32")
    with pytest.raises(IndexError):
        stored[12]
    (tmp_path / "store/features-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"features-00001\.safetensors is missing"):
        StoredFeatures.open(tmp_path / "store")


class Files:
    """Two files, the first of them named twice, and a record without an image."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "a.png", None, folder / "b.png", folder / "a.png"]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Record:
        return Record(f"files/{index}", self.paths[index], questions=Squares()[index].questions)


def test_a_file_is_stored_once_and_text_stays_text(model: UnifiedModel, tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")
    picture.rotate(180).save(tmp_path / "b.png")
    stored = encode_features(model.pixels.tower, Files(tmp_path), tmp_path / "store", work=PassConfig(3))
    assert stored.rows.tolist() == [0, -1, 1, 0] and len(stored) == 2
    dataset = featured(model, tmp_path / "store", Files(tmp_path))
    assert dataset[1].image is None and len(dataset) == 4
    segments = make_template().look(dataset[2].image)
    assert np.array_equal(segments[0].features, stored[1]) and segments[0].pixels is None
    assert np.array_equal(look(dataset[3].image, 16), look(tmp_path / "a.png", 16))  # who wants to see it, may


def test_refusals(model: UnifiedModel, folder: Path, tmp_path: Path) -> None:
    def refuse(match: str, **changed) -> None:
        words = {"dataset": Squares(), "folder": folder, "tower_hash": tower_fingerprint(model.pixels.tower), "image_size": 16}
        with pytest.raises(ValueError, match=match):
            FeaturedDataset(**{**words, **changed})

    class Other(Squares):
        def __getitem__(self, index: int) -> Record:
            record = super().__getitem__(index)
            return record.with_image(255 - np.asarray(record.image))

    class Renamed(Squares):
        def __getitem__(self, index: int) -> Record:
            return replace(super().__getitem__(index), key=f"other/{index}")

    class Short(Squares):
        def __len__(self) -> int:
            return 11

    refuse(r"made with tower_hash \w+, not 000", tower_hash="000")
    refuse("made with image_size 16, not 32", image_size=32)
    refuse("num_records 12, not 11", dataset=Short())
    refuse("squares/0 to squares/11, not other/0 to other/11", dataset=Renamed())
    refuse("of another image than record squares/0 has now", dataset=Other())
    refuse("holds no stored features", folder=tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for changed, match in (({"preparation": "old"}, "made with preparation old"), ({"num_images": 11}, "damaged")):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changed}))
        refuse(match)
    (folder / "manifest.json").write_text("{")
    refuse("cannot be read")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = (folder / ROWS).read_bytes()
    (folder / ROWS).unlink()
    (folder / ROWS).write_bytes(rows[:-8])
    refuse("The features in .* are damaged .*copy them again")


def test_another_preparation_is_noticed(model: UnifiedModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimm.data.image._BACKGROUND", (0, 0, 0))
    with pytest.raises(ValueError, match="made with preparation"):
        featured(model, folder)


def test_weights_that_moved_are_another_tower(model: UnifiedModel, folder: Path) -> None:
    tower = make_model().pixels.tower
    tower.load_state_dict(model.pixels.tower.state_dict())
    assert tower_fingerprint(tower) == tower_fingerprint(model.pixels.tower)
    with torch.no_grad():
        next(tower.parameters()).flatten()[0] += 1e-3
    with pytest.raises(ValueError, match="tower_hash"):
        FeaturedDataset(Squares(), folder, tower_fingerprint(tower), 16)


def test_what_is_not_stored(model: UnifiedModel, tmp_path: Path) -> None:
    """Augmented images, no images at all, over other files: told at once, or where it is met; and mended, it goes on."""
    rng = np.random.default_rng(0)

    class Augmented(Squares):
        def __getitem__(self, index: int) -> Record:
            return super().__getitem__(index).with_image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))

    class Blind(Squares):
        def __getitem__(self, index: int) -> Record:
            return replace(super().__getitem__(index), image=None)

    class Broken(Squares):
        def __getitem__(self, index: int) -> Record:
            return super().__getitem__(index) if index < 9 else super().__getitem__(index).with_image(b"broken")

    for dataset, match in (
        (Augmented(), "another image each time"),
        (Blind(), "no record has an image"),
        (Broken(), r"3 of 12 images cannot be used \(squares/9, squares/10, squares/11: it is not a JPEG"),
    ):
        with pytest.raises(ValueError, match=match):
            encode_features(model.pixels.tower, dataset, tmp_path / "store", work=PassConfig(2))
    with pytest.raises(ValueError, match="bfloat16 or float32, not as 'int8'"):
        encode_features(model.pixels.tower, Squares(), tmp_path / "store", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == [".store.unfinished"]
    encode_features(model.pixels.tower, Squares(), tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("a year of work")
    with pytest.raises(ValueError, match="not a folder of stored features"):
        encode_features(model.pixels.tower, Squares(), tmp_path / "notes")


def test_views_say_what_they_teach() -> None:
    tasks = {source.name: source.view.task for source in make_mixture().sources}
    assert tasks == {"talk": "understanding", "draw": "drawing", "text": "text"}
    for view, task in ((Conversation(), "understanding"), (Drawing(), "drawing"), (PlainText(), "text")):
        source = Source("one", Squares(), view)
        shown = [one for one in Mixture([source], make_template()).sequence((0, 0)).segments if one.image]
        assert bool(shown) == (task == "understanding") == (view.task == "understanding")
