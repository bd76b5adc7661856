"""Broken data neither stops a run nor hides: every kind of file has its outcome; what cannot be used is replaced, the same on
every rank and after a resume, listed and counted, and too much of it ends the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tokenizers import SIZES
from toy_tokenizers import make_config as make_tokenizer_config
from toys import make_config, make_model, make_template, make_trainer
from users_files import make_shard, picture_bytes

from unimm.bench.broken_files import BAD, MATRIX, PNG, make_folder
from unimm.cli.train_tokenizer import validation_pixels
from unimm.data.bad_records import BadRecord, count_kinds, kind_of
from unimm.data.image import decode_image
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, Steps
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.stores.codes import CodedDataset
from unimm.data.views import Conversation, Drawing
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.codes import encode_dataset
from unimm.precompute.features import encode_features
from unimm.precompute.sharded_pass import PassConfig
from unimm.training.bad_records import DataError
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.logbook import read_numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("matrix") / "photos")


def open_folder(folder: Path) -> ImageFolder:
    dataset = ImageFolder(folder, max_bad=1.0)
    (folder / "gone.png").unlink(missing_ok=True)  # after the names were read
    return dataset


def make_mixture(dataset: Any, max_bad: float = 1.0, **changes: Any) -> Mixture:
    return Mixture([Source("photos", dataset, Conversation(caption_share=1.0))], make_template(), 3, max_bad=max_bad, **changes)


def outcome(dataset: ImageFolder, index: int, mixture: Mixture) -> str | None:
    """What is wrong with a record, None: nothing."""
    try:
        sample = mixture.sources[0].view(dataset[index], mixture.template.limited(64), np.random.default_rng(0))
        for segment in sample.segments:
            assert segment.opened().length == segment.length
    except ValueError as error:
        return str(error)
    return None


def test_every_kind_has_its_outcome(folder: Path) -> None:
    (folder / "gone.png").write_bytes(PNG)
    dataset = open_folder(folder)
    mixture = make_mixture(dataset)
    keys = [dataset.key_at(index) for index in range(len(dataset))]
    assert set(MATRIX) <= set(keys) and len(MATRIX) >= 25
    for index, name in enumerate(keys):
        told, why = outcome(dataset, index, mixture), BAD.get(name)
        assert (told is None) == (why is None), (name, told)
        assert why is None or any(words in str(told) for words in why.split("|")), (name, told)
        assert told is None or ("\n" not in told and told.endswith(".") and str(folder) in told), told
    upright = {f"turned{number}.jpg" for number in range(1, 9)} | {"cmyk.jpg", "LOUD.JPG", "photo.jfif", "photo.avif"}
    for name in upright:
        picture = decode_image(dataset[keys.index(name)].image)  # pyright: ignore
        assert len({picture.getpixel(at) for at in ((2, 2), (picture.width - 3, 2), (2, picture.height - 3))}) == 3
    assert dataset[keys.index("windows.png")].captions[0].text == "Four squares.\nOne is red."
    assert dataset[keys.index("bom.png")].captions[0].text == "Four squares."
    record = dataset[keys.index("special.png")]
    asked = make_mixture(dataset).sources[0].view(record, mixture.template, np.random.default_rng(0))
    learned = np.concatenate([s.content_ids for s in asked.segments if s.learn])[:-1]  # the last one ends it
    special = mixture.template.tokenizer.special
    assert not {special.bos, special.eos, special.begin_of_image, special.pad} & set(learned.tolist())
    cut = mixture.template.limited(64)
    assert mixture.sources[0].view(dataset[keys.index("long.png")], cut, np.random.default_rng(0)).full_length > 100_000


NAMES = ("zero.png", "cut.jpg", "page.jpg", "bare.png", "blank.png", "latin.png", "large.png", "cmyk.jpg", "turned6.jpg")
EXPECTED = {name for name in NAMES if name in BAD}


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolder:
    return ImageFolder(make_folder(tmp_path / "photos", NAMES, num_good=16), max_bad=1.0)


def test_the_stream_is_the_same_on_every_rank_and_after_a_resume(photos: ImageFolder) -> None:
    alone = Steps(Plan(make_mixture(photos), 64, 8))
    ranks = [Steps(Plan(make_mixture(photos), 64, 8), rank=rank, num_ranks=2) for rank in (0, 1)]
    found = set()
    for step in range(4):
        whole = alone[step]
        parts = [steps[step] for steps in ranks]
        rows = [None] * 8
        for rank, part in enumerate(parts):
            for number, row in enumerate(part.batches[0].tokens):
                rows[rank + 2 * number] = row
        assert torch.equal(torch.stack(rows), whole.batches[0].tokens)  # pyright: ignore
        later = Steps(Plan(make_mixture(photos), 64, 8, origin=whole.origin))[step]
        assert torch.equal(later.batches[0].tokens, whole.batches[0].tokens)
        assert torch.equal(later.batches[0].images.pixels, whole.batches[0].images.pixels) and later.bad == whole.bad
        assert set(whole.bad) == {one for part in parts for one in part.bad}
        found |= {one.key for one in whole.bad}
    assert found == EXPECTED


def test_a_run_goes_on_lists_them_and_resumes_to_the_bit(photos: ImageFolder, tmp_path: Path) -> None:
    config = make_config(4, num_rows=8)
    whole = make_trainer(tmp_path / "whole", config, make_mixture(photos))
    whole.fit()
    make_trainer(tmp_path / "parts", make_config(2, num_rows=8), make_mixture(photos)).fit()
    parts = make_trainer(tmp_path / "parts", config, make_mixture(photos))
    assert parts.step == 2
    parts.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name
    lists = [(tmp_path / run / "bad_records.txt").read_text().splitlines() for run in ("whole", "parts")]
    assert {line.split("\t")[0] for line in lists[0]} == EXPECTED and lists[0] == lists[1]
    assert all(line.split("\t")[2] == "photos" for line in lists[0])
    assert read_numbers(tmp_path / "whole/metrics.jsonl")[-1]["data/bad_records"] == len(EXPECTED)


def test_too_many_end_it(photos: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        make_trainer(tmp_path / "run", make_config(6, num_rows=4), make_mixture(photos, max_bad=0.05)).fit()
    sentence = str(told.value)
    assert "of 25 records of the source 'photos' cannot be used" in sentence and "max_bad=0.05" in sentence
    assert "give the same line again" in sentence and (tmp_path / "run/bad_records.txt").is_file()
    raised = make_trainer(tmp_path / "run", make_config(6, num_rows=4), make_mixture(photos, max_bad=0.5))
    step = raised.step
    raised.fit()
    assert raised.step == 6 > step and {line.split("\t")[0] for line in (tmp_path / "run/bad_records.txt").open()} <= EXPECTED
    with pytest.raises(DataError, match="since 7 of 25 records cannot be used"):
        make_trainer(tmp_path / "none", make_config(6, num_rows=4), make_mixture(photos, max_bad=0.0)).fit()
    broken = ImageFolder(make_folder(tmp_path / "broken", ("zero.png", "cut.jpg"), 0), max_bad=1.0)
    with pytest.raises(DataError, match="cannot be used"):
        make_trainer(tmp_path / "all", make_config(2, num_rows=2), make_mixture(broken, max_bad=0.5)).fit()


def make_tokenizer_trainer(folder: Path, photos: Any, max_steps: int, max_bad: float = 1.0) -> TokenizerTrainer:
    batches = ImageBatches([ImageSource(photos, name="photos")], 4, SIZES.image_size, seed=3, max_bad=max_bad)
    config = make_tokenizer_config(max_steps, report_every=1)
    return TokenizerTrainer(ImageTokenizer(SIZES), batches, config, folder, device="cpu")


def test_an_image_tokenizer_learns_from_the_others_and_resumes_to_the_bit(photos: ImageFolder, tmp_path: Path) -> None:
    """Also where the list has what a killed run met after its last checkpoint."""
    torch.manual_seed(0)
    whole = make_tokenizer_trainer(tmp_path / "whole", photos, 12)
    torch.manual_seed(0)
    parts = make_tokenizer_trainer(tmp_path / "parts", photos, 5)
    whole.fit(), parts.fit()
    listed = tmp_path / "parts/bad_records.txt"
    at_five = listed.read_text()
    listed.write_text(f"{at_five}good00.png\tIt was met later.\tphotos\nlatin.png\tcut in the mid")
    parts = make_tokenizer_trainer(tmp_path / "parts", photos, 12)
    assert parts.step == 5 and listed.read_text() == at_five
    parts.fit()
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, parts.ema.state_dict()[name]), name
    lines = [(tmp_path / run / "bad_records.txt").read_text().splitlines() for run in ("whole", "parts")]
    assert lines[0] == lines[1] and {line.split("\t")[0] for line in lines[0]} == EXPECTED
    counts = [
        [line.get("data/bad_records", 0) for line in read_numbers(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "parts")
    ]
    assert counts[0] == counts[1] and counts[0][-1] == len(EXPECTED)
    alone = ImageBatches([ImageSource(photos)], 4, SIZES.image_size, seed=3, max_bad=1.0)
    ranks = [alone.for_rank(rank, 2) for rank in (0, 1)]
    for step in range(3):
        assert np.array_equal(np.concatenate([one[step] for one in ranks]), alone[step])
        assert not set(alone.names(step)) & EXPECTED


def test_too_many_bad_images_end_an_image_tokenizer_s_run(photos: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        make_tokenizer_trainer(tmp_path, photos, 20, max_bad=0.1).fit()
    sentence = str(told.value)
    assert "of 25 records of the source 'photos' cannot be used (" in sentence and "max_bad=0.1 of them may be" in sentence
    assert f"listed in {tmp_path / 'bad_records.txt'}" in sentence and "take them out or raise max_bad" in sentence
    raised = make_tokenizer_trainer(tmp_path, photos, 20, max_bad=0.5)
    assert raised.step >= 1
    raised.fit()
    assert raised.step == 20


@pytest.mark.parametrize("way", ["mended", "taken out"])
def test_a_run_that_too_many_ended_goes_on_without_them(photos: ImageFolder, tmp_path: Path, way: str) -> None:
    """By the same line: those of the step that could not be made are looked at again."""
    again, told = make_tokenizer_trainer(tmp_path, photos, 20, max_bad=0.1), ""
    while again.step < 20:
        try:
            again.fit()
        except DataError as error:
            assert str(error) != told and "mend these, take them out" in str(error)
            told = str(error)
            for line in (tmp_path / "bad_records.txt").read_text().splitlines():
                path = tmp_path / "photos" / line.split("\t")[0]
                if way == "taken out":
                    path.unlink(missing_ok=True)
                    continue
                path.write_bytes(PNG)
                path.with_suffix(".txt").write_text("A picture.")
            again = make_tokenizer_trainer(tmp_path, ImageFolder(tmp_path / "photos", max_bad=1.0), 20, max_bad=0.1)
    assert told and again.step == 20
    assert (tmp_path / "bad_records_before.txt").exists() is (way == "taken out")


def test_images_to_validate_on_may_be_bad_too(photos: ImageFolder, caplog: pytest.LogCaptureFixture) -> None:
    found = validation_pixels(photos, 100, 16, max_bad=0.5)
    assert found.shape == (len(photos) - len(EXPECTED), 3, 16, 16)
    assert "7 of 25 images to validate on cannot be used" in caplog.text
    with pytest.raises(ValueError, match=r"7 of 25 .* max_bad=0.1 of them may be"):
        validation_pixels(photos, 100, 16, max_bad=0.1)


def test_codes_are_made_of_what_can_be_used(photos: ImageFolder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, out = ImageTokenizer(SIZES).eval(), tmp_path / "codes"
    with pytest.raises(ValueError, match=r"7 of 25 images cannot be used.*max_bad=0.2 of them may be"):
        encode_dataset(tokenizer, photos, out, work=PassConfig(quiet=True, max_bad=0.2))
    stored = encode_dataset(tokenizer, photos, out, work=PassConfig(quiet=True, max_bad=0.3))
    listed = [line.split("\t")[0] for line in (out / "bad_records.txt").read_text().splitlines()]
    assert set(listed) == EXPECTED and len(stored.bad_rows) == len(EXPECTED) == stored.manifest.num_bad
    dataset = CodedDataset(photos, out)
    mixture = Mixture([Source("draw", dataset, Drawing(0.0))], make_template(), max_bad=0.5)
    drawn = [mixture.sample((0, number)) for number in range(len(photos))]
    replaced = {one.key for number in range(len(photos)) for one in mixture.replaced((0, number))}
    assert replaced == EXPECTED and all(one.sequences[0].num_learned_codes == tokenizer.num_codes for one in drawn)
    (photos.folder / "zero.png").write_bytes(PNG)
    again = encode_dataset(tokenizer, photos, out, work=PassConfig(quiet=True, max_bad=0.3))
    assert again.manifest.num_bad == len(EXPECTED) - 1, "what was mended is encoded"


def test_all_kinds_are_encoded_or_listed(folder: Path, tmp_path: Path) -> None:
    """Codes and features; what is listed is what has an outcome, and reasons are counted without names."""
    (folder / "gone.png").write_bytes(PNG)
    dataset, work = open_folder(folder), PassConfig(quiet=True, max_bad=0.5)
    torch.manual_seed(0)
    encode_dataset(ImageTokenizer(SIZES).eval(), dataset, tmp_path / "codes", work=work)
    encode_features(make_model().pixels.tower.eval(), dataset, tmp_path / "features", work=work)
    for store in ("codes", "features"):
        listed = [line.split("\t") for line in (tmp_path / store / "bad_records.txt").read_text().splitlines()]
        assert {key for key, _ in listed} == set(BAD), store
    told = count_kinds([BadRecord(key, reason) for key, reason in listed])
    assert str(folder) not in told and not [name for name in BAD if name in told], told


def test_lines_of_json(tmp_path: Path) -> None:
    """A missing file, a path of Windows, a name in the other form of Unicode, a damaged line; the first one bad."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/caf\u00e9.png").write_bytes(PNG)
    images = ("gone.png", "sub\\caf\u00e9.png", "sub/cafe\u0301.png", "sub/caf\u00e9.png")
    lines = [json.dumps({"image": name, "caption": "Squares."}, ensure_ascii=False) for name in images]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join([*lines, '{"image": ']).encode("utf-8-sig"))
    dataset = JsonLines(tmp_path / "a.jsonl", Fields(image="image", caption="caption"))
    mixture = make_mixture(dataset)
    samples = [mixture.sample((0, number)) for number in range(5)]
    assert len(samples) == 5 and len(dataset) == 5
    bad = {one.key: kind_of(one.reason) for number in range(5) for one in mixture.replaced((0, number))}
    assert set(bad) == {"a.jsonl/0", "a.jsonl/4"} and "is not there" in bad["a.jsonl/0"]
    with pytest.raises(ValueError, match=r"is not JSON|is not there"):
        [make_mixture(dataset, max_bad=0.0).sample((0, number)) for number in range(5)]


def test_damaged_files_among_many_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pyarrow
    import pyarrow.parquet

    for number in range(4):
        make_shard(tmp_path / f"{number}.tar", {"a.png": picture_bytes(number), "a.txt": b"One."})
        columns = {"image": [picture_bytes(number)], "text" if number else "words": ["One."]}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{number}.parquet")
    (tmp_path / "3.tar").write_bytes((tmp_path / "3.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"3\.tar.*copy or download it again"):
        WebDataset(tmp_path, max_bad=0.1)
    assert [one.name for one in WebDataset(tmp_path, max_bad=0.3).shards] == ["0.tar", "1.tar", "2.tar"]
    fields = Fields(image="image", caption="text")
    with pytest.raises(ValueError, match=r"0\.parquet has no 'text'"):
        Parquet(tmp_path, fields, max_bad=0.1)
    assert len(Parquet(tmp_path, fields, max_bad=0.3)) == 3
    for name in ("0.tar", "1.tar", "2.tar"):
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"0\.tar cannot be read as tar"):
        WebDataset(tmp_path, max_bad=1.0)
    assert "3.tar" in caplog.text and "0.parquet has no 'text'" in caplog.text and "left out" in caplog.text


def test_what_looks_like_data_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "photos", ())
    for name in ("drawing.svg", "film.mp4", "lost.txt", "captions.json", "metadata.tsv"):
        (folder / name).write_text("{}")
    ImageFolder(folder)
    assert "5 files that may be data are not read (.json, .mp4, .svg, .tsv, .txt)" in caplog.text


def test_excel_s_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", (), num_good=2)
    table = '\ufefffile_name;text\r\ngood00.png;"One; red."\r\ngood01.png;Two.\r\n'
    (folder / "metadata.csv").write_bytes(table.encode())
    assert [record.captions[0].text for record in map(ImageFolder(folder).__getitem__, (0, 1))] == ["One; red.", "Two."]


def test_a_mixture_without_bad_records_is_the_same_whatever_may_be_bad(tmp_path: Path) -> None:
    photos = ImageFolder(make_folder(tmp_path / "photos", ()))
    some, none = (Steps(Plan(make_mixture(photos, max_bad=share), 64, 4))[1] for share in (0.5, 0.0))
    assert some.samples == none.samples and some.bad == ()
    for one, other in zip(some.batches, none.batches, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.images.pixels, other.images.pixels)
    assert replace(some, bad=()) is not some
