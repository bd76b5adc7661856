"""Shards whose records carry the codes of their images, which are stored shard by shard.

    FOLDER/NAME/codes.safetensors, manifest.json   of the shard NAME, as `unimm.data.stores.codes` has them

A training learns from the shards that have codes when a pass begins: `unimm encode` may be at the newest ones meanwhile, and
encodes those alone that have none yet.
"""

import logging
from pathlib import Path
from typing import Self

from unimm.data.grids import Grid
from unimm.data.records import DEFAULT_CODES, Dataset, DatasetContext
from unimm.data.shards.dataset import ShardedDataset
from unimm.data.shards.passes import Sizes
from unimm.data.stores.codes import CODES, CodedDataset, CodesManifest
from unimm.data.stores.tensor_store import MANIFEST

logger = logging.getLogger(__name__)


class CodedShards(ShardedDataset):
    """The shards of a data set that have codes.

    Args:
        dataset: the shards.
        folder: of the codes, one folder a shard.
        tokenizer_hash, tokenizer, grid: as of `CodedDataset`.

    Raises ValueError where no shard has codes; later as `CodedDataset`.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        folder: str | Path,
        tokenizer_hash: str | None = None,
        tokenizer: str = DEFAULT_CODES,
        grid: str | None = None,
    ) -> None:
        if not isinstance(dataset, ShardedDataset):
            raise ValueError("CodedShards are of a ShardedDataset: of any other data set take unimm.data.CodedDataset.")
        vars(self).update(vars(dataset.wrapped(self._coded)))
        self.folder = Path(folder)
        self._settings = {"tokenizer_hash": tokenizer_hash, "tokenizer": tokenizer, "grid": grid}
        num_shards = len(self.at_start)
        self.at_start = self.find()
        num_coded = len(self.at_start)
        if num_coded < num_shards:
            logger.warning(
                f"{num_shards - num_coded:,} of {num_shards:,} shards in {self.top} have no codes in {self.folder} yet, and "
                f"are learned from when they do: run `unimm encode` for the same data."
            )
        self._check_first()

    def find(self) -> Sizes:
        """The shards that are there now and have codes, and their sizes."""
        sizes = {name: size for name, size in super().find().items() if (self.folder / name / MANIFEST).is_file()}
        if not sizes:
            raise ValueError(f"{self.folder} holds no codes of any shard in {self.top}: make them with `unimm encode`.")
        return sizes

    def bind(self, context: DatasetContext) -> Self:
        """The same shards, if their codes are those of the image tokenizer that is used.

        Raises:
            ValueError: they are another one's.
        """
        other = super().bind(context)
        other._check_first()
        return other

    def _coded(self, records: Dataset, name: str) -> Dataset:
        return CodedDataset(records, self.folder / name, **self._settings)


def is_encoded(folder: Path, num_records: int, tokenizer_hash: str, grid: Grid | None) -> bool:
    """Whether the codes of a shard with so many records lie in a folder, made by an image tokenizer with this fingerprint."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = CodesManifest.read(folder, CODES)
    own = (manifest.num_records, manifest.tokenizer_hash, manifest.grid)
    return own == (num_records, tokenizer_hash, "" if grid is None else grid.name)
