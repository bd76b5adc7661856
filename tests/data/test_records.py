"""A data set is bound to the networks that it is used with, however it is wrapped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimm.data.binding import bind
from unimm.data.holdout import Subset
from unimm.data.image import image_hash
from unimm.data.records import Dataset, DatasetContext, Record, unchecked
from unimm.data.stores.codes import CodedDataset, CodesManifest, save_codes

OWN, OTHER = DatasetContext(tokenizer_hash="own"), DatasetContext(tokenizer_hash="other")
NUM_RECORDS = 3


def grey(shade: int) -> np.ndarray:
    return np.full((8, 8, 3), shade, np.uint8)


class Squares:
    """A record a shade of grey."""

    def __len__(self) -> int:
        return NUM_RECORDS

    def __getitem__(self, index: int) -> Record:
        return Record(f"square/{index}", image=grey(index))


class Renamed:
    """As a user writes one: it knows nothing of codes, or of fingerprints."""

    def __init__(self, dataset: Dataset) -> None:
        self.inner = dataset

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Record:
        record = self.inner[index]
        return Record(f"renamed/{record.key}", record.image, codes=record.codes)


class Delegating(Renamed):
    """What it does not have itself, it has from the data set inside."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(vars(self)["inner"], name)


class Joined:
    """Several, one after another."""

    def __init__(self, *datasets: Dataset) -> None:
        self.datasets = list(datasets)

    def __len__(self) -> int:
        return sum(len(one) for one in self.datasets)

    def __getitem__(self, index: int) -> Record:
        return self.datasets[index // NUM_RECORDS][index % NUM_RECORDS]


class Tagged(Squares):
    """Tells whose it is, once it is bound."""

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner

    def bind(self, context: DatasetContext) -> "Tagged":
        return Tagged(context.tokenizer_hash)


@pytest.fixture
def coded(tmp_path: Path) -> CodedDataset:
    manifest = CodesManifest(
        NUM_RECORDS, "squares", "square/0", "square/2", image_hash(grey(0)), "own", "float32", 8, 4, 16, "0"
    )
    save_codes(tmp_path / "codes", np.arange(4 * NUM_RECORDS).reshape(NUM_RECORDS, 4), manifest)
    return CodedDataset(Squares(), tmp_path / "codes")


def test_codes_of_another_tokenizer_are_refused_in_any_wrapper(coded: CodedDataset) -> None:
    wrapped = [
        coded,
        Renamed(coded),
        Renamed(Renamed(coded)),
        Delegating(coded),
        Joined(Squares(), coded),
        Renamed(Joined(Squares(), Renamed(coded))),
        Subset(Renamed(coded), np.arange(2)),
    ]
    for dataset in wrapped:
        bound = bind(dataset, OWN)
        assert type(bound) is type(dataset) and len(bound) == len(dataset)
        assert [bound[index].key for index in range(len(bound))] == [dataset[index].key for index in range(len(dataset))]
        with pytest.raises(ValueError, match="tokenizer_hash own, not other"):
            bind(dataset, OTHER)
        bind(dataset, DatasetContext())


def test_a_wrapper_holds_what_its_data_sets_became() -> None:
    """And the one that was bound is what it was; what nobody binds is not copied."""
    inner = Tagged()
    wrapper = Joined(Renamed(inner), Squares(), inner)
    bound = bind(wrapper, OWN)
    assert isinstance(bound, Joined) and isinstance(bound.datasets[0], Renamed)
    owners = [one.owner for one in (bound.datasets[0].inner, bound.datasets[2]) if isinstance(one, Tagged)]
    assert owners == ["own", "own"] and inner.owner is None and wrapper.datasets[2] is inner
    plain = Renamed(Squares())
    assert bind(plain, OWN) is plain
    plain.inner = Joined(plain)  # a circle ends
    assert bind(plain, OWN) is plain


def test_who_passes_attributes_on_still_says_what_its_records_are(coded: CodedDataset) -> None:
    assert unchecked(Delegating(coded), 1).key == "renamed/square/1"
