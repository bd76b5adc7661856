"""Codes that stand for drawings: what a benchmark needs of an image tokenizer, without one."""

from dataclasses import dataclass

import numpy as np

from unimm.data.records import Dataset, Record


@dataclass(frozen=True)
class CodedAtRandom:
    """A data set with `num_codes` codes below `codebook_size` for every record, which follow from its index alone."""

    dataset: Dataset
    num_codes: int
    codebook_size: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        chance = np.random.Generator(np.random.Philox(key=index))
        return self.dataset[index].with_codes(chance.integers(0, self.codebook_size, self.num_codes))
