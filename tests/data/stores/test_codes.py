"""Stored codes come back as they were, and refuse to be taken for others."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from toys import make_template

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.holdout import Subset
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Record
from unimm.data.stores.codes import CodedDataset, StoredCodes, save_codes
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.precompute.codes import encode_dataset
from unimm.precompute.sharded_pass import PassConfig
from unimm.sequence import Segment, Sequence


class Noise:
    """Random images; `first` moves the keys."""

    def __init__(self, num_records: int = 5, first: int = 0) -> None:
        self.num_records, self.first = num_records, first

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(self.first + index)
        return Record(f"noise/{self.first + index}", image=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(16, 32, (1, 1), 1, 32, quantizer=QuantizerConfig(codebook_size=32, code_dim=4))
    return ImageTokenizer(config).freeze()


@pytest.fixture
def folder(tmp_path, tokenizer):
    encode_dataset(tokenizer, Noise(), tmp_path / "codes", work=PassConfig(2, quiet=True))
    return tmp_path / "codes"


def test_round_trip(folder, tokenizer):
    stored = StoredCodes.open(folder, tokenizer_hash=fingerprint(tokenizer), num_records=5)
    pixels = torch.stack([torch.from_numpy(Noise()[i].image) for i in range(5)]).permute(0, 3, 1, 2) / 127.5 - 1
    assert np.array_equal(np.stack([stored[i] for i in range(5)]), tokenizer.encode(pixels).numpy())
    assert stored[0].shape == (64,) and stored[0].dtype == np.int64 and len(stored) == 5
    manifest = stored.manifest
    assert (manifest.precision, manifest.image_size, manifest.codebook_size) == ("float32", 16, 32)
    assert (manifest.dataset, manifest.first_key, manifest.last_key) == ("Noise", "noise/0", "noise/4")
    assert np.array_equal(pickle.loads(pickle.dumps(stored))[3], stored[3])  # as worker processes get it
    with pytest.raises(IndexError):
        stored[5]


def test_stored_small_where_codes_are_few(folder, tmp_path):
    manifest = StoredCodes.open(folder).manifest
    large = dataclasses.replace(manifest, codebook_size=100_000, num_records=2, num_codes=3)
    codes = np.array([[0, 65_536, 99_999], [1, 2, 3]])
    save_codes(tmp_path / "large", codes, large)
    assert np.array_equal(StoredCodes.open(tmp_path / "large")[0], codes[0])
    assert (folder / "codes.safetensors").stat().st_size < 5 * (64 * 2 + 32) + 300


def test_coded_dataset(folder, tokenizer):
    coded = CodedDataset(Noise(), folder, fingerprint(tokenizer))
    assert len(coded) == 5 and coded[2].key == "noise/2" and np.array_equal(coded[2].codes, coded.codes[2])
    assert coded[2].image is not None
    with pytest.raises(ValueError, match="noise/0 to noise/4, not noise/7 to noise/11"):
        CodedDataset(Noise(first=7), folder)
    with pytest.raises(ValueError, match="num_records 5, not 4"):
        CodedDataset(Noise(4), folder)


def test_corrupted_codes_are_of_the_same_records(folder, tmp_path, tokenizer):
    class Negatives(Noise):
        def __getitem__(self, index: int) -> Record:
            record = super().__getitem__(index)
            return record.with_image(255 - record.image)

    encode_dataset(tokenizer, Negatives(), tmp_path / "negatives", work=PassConfig(2, quiet=True))
    negatives = CodedDataset(Negatives(), tmp_path / "negatives")
    record = CodedDataset(Noise(), folder, corrupted=negatives)[3]
    assert np.array_equal(record.codes, StoredCodes.open(folder)[3]) and np.array_equal(
        record.corrupted_codes, negatives[3].codes
    )
    assert not np.array_equal(record.codes, record.corrupted_codes) and CodedDataset(Noise(), folder)[3].corrupted_codes is None
    encode_dataset(tokenizer, Noise(first=7), tmp_path / "others", work=PassConfig(2, quiet=True))
    with pytest.raises(ValueError, match="are of other records than the codes in"):
        CodedDataset(Noise(), folder, corrupted=CodedDataset(Noise(first=7), tmp_path / "others"))


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="tokenizer_hash"):
        StoredCodes.open(folder, tokenizer_hash="0" * 64)
    with pytest.raises(ValueError, match="image_size 16, not 64"):
        StoredCodes.open(folder, image_size=64)
    with pytest.raises(ValueError, match="no stored codes"):
        StoredCodes.open(tmp_path)
    manifest = StoredCodes.open(folder).manifest
    with pytest.raises(ValueError, match=r"Codes lie in \[0, 32\)"):
        save_codes(tmp_path / "bad", np.full((5, 64), 32), manifest)
    with pytest.raises(ValueError, match="manifest speaks of"):
        save_codes(tmp_path / "bad", np.zeros((4, 64), dtype=int), manifest)
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "num_records": 6}))
    with pytest.raises(ValueError, match="damaged"):
        StoredCodes.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        StoredCodes.open(folder)


def test_only_codes_are_replaced(folder, tmp_path, tokenizer):
    """Codes make way for new ones; a folder with anything else in it stays as it is."""
    encode_dataset(tokenizer, Noise(num_records=3), folder, work=PassConfig(2, quiet=True))
    assert len(StoredCodes.open(folder)) == 3
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("a year of work")
    with pytest.raises(ValueError, match="not a folder of stored codes"):
        encode_dataset(tokenizer, Noise(), notes, work=PassConfig(2, quiet=True))
    assert (notes / "mine.txt").read_text() == "a year of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "notes"]


def test_nothing_half_written(tmp_path, tokenizer):
    class Broken(Noise):
        def __getitem__(self, index: int) -> Record:
            return Record("broken/0") if index == 3 else super().__getitem__(index)

    with pytest.raises(ValueError, match="no image"):
        encode_dataset(tokenizer, Broken(), tmp_path / "codes", work=PassConfig(quiet=True))
    with pytest.raises(ValueError, match="nothing to encode"):
        encode_dataset(tokenizer, Noise(0), tmp_path / "codes", work=PassConfig(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == [".codes.unfinished"]
    encode_dataset(tokenizer, Noise(), tmp_path / "codes", work=PassConfig(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_other_images_under_the_same_keys_are_noticed(folder):
    class Exchanged(Noise):
        def __getitem__(self, index: int) -> Record:
            return dataclasses.replace(Noise(first=7)[index], key=f"noise/{index}")

    assert len(CodedDataset(Noise(), folder)) == 5
    with pytest.raises(ValueError, match="of another image than record noise/0 has now: make them again with `unimm encode`"):
        CodedDataset(Exchanged(), folder)


class Exchanged(Noise):
    """One picture is another one now, under the same key."""

    def __init__(self, place: int, num_records: int = 5) -> None:
        super().__init__(num_records)
        self.place = place

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return record.with_image(255 - record.image) if index == self.place else record


def test_codes_of_another_picture_are_noticed_where_they_would_be_learned(tmp_path, tokenizer):
    """A few records from all over are looked at at once, each other one when it is read, or opened to be learned."""
    encode_dataset(tokenizer, Noise(60), tmp_path / "codes", work=PassConfig(20, quiet=True))
    told = "of another image than record noise/1 has now: run `unimm encode` again, which makes only those that have changed"
    coded = CodedDataset(Exchanged(1, 60), tmp_path / "codes")
    assert coded[2].codes is not None
    for _ in range(2):
        with pytest.raises(ValueError, match=told):
            coded[1]
    assert coded.unchecked(1).key == "noise/1", "who plans may read it"
    mixture = Mixture([Source("draw", Subset(coded, np.array([1])), Drawn(), 1.0)], make_template())
    assert mixture.sequence((0, 0)).num_learned_codes > 0
    with pytest.raises(ValueError, match=told):
        mixture.check((0, 0))
    with pytest.raises(ValueError, match="record noise/59 has now"):
        CodedDataset(Exchanged(59, 60), tmp_path / "codes")
    negatives = CodedDataset(Exchanged(1, 60), tmp_path / "codes")
    with pytest.raises(ValueError, match=told):
        CodedDataset(Noise(60), tmp_path / "codes", corrupted=negatives)[1]


class Drawn:
    """The codes of a record, learned."""

    task = "drawing"

    def __call__(self, record, template, rng):
        return Sequence((Segment.codes(record.codes, learn=True),))


def test_an_image_is_compared_once_a_process(folder, monkeypatch):
    coded, read = CodedDataset(Noise(), folder), []
    monkeypatch.setattr("unimm.data.stores.tensor_store.is_same", lambda *_: read.append(1) or True)
    assert [coded[2].key for _ in range(5)] == 5 * ["noise/2"] and not read, "five records were all looked at when it was made"
    copy = pickle.loads(pickle.dumps(CodedDataset(Noise(), folder)))
    assert copy[3].key == "noise/3" and len(read) == 5


def test_codes_of_an_older_unimm_are_read_with_a_warning_and_made_again(folder, tokenizer, caplog, capsys):
    """They do not tell of which images they are."""
    stored = StoredCodes.open(folder)
    expected = np.stack([stored[index] for index in range(5)])
    save_codes(folder, 1 - np.minimum(expected, 1), stored.manifest)
    assert CodedDataset(Exchanged(2), folder)[2].codes is not None
    assert "made by an older unimm" in caplog.text and "run `unimm encode` again" in caplog.text
    encode_dataset(tokenizer, Noise(), folder, work=PassConfig(2))
    assert "is of an older unimm" in capsys.readouterr().err
    assert np.array_equal(np.stack([StoredCodes.open(folder)[index] for index in range(5)]), expected)
