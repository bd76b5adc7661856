"""Codes of a data set in shards, shard by shard: those that have codes already are passed over, so a set that grows is encoded
again and again at the cost of what is new."""

import json
from pathlib import Path
from typing import Any

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.grids import Grid
from unimm.data.shards.coded import is_encoded
from unimm.data.shards.dataset import ShardedDataset
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.codes import encode_dataset
from unimm.precompute.sharded_pass import PassConfig


def encode_shards(
    tokenizer: ImageTokenizer,
    dataset: ShardedDataset,
    out: Path,
    name: str = "",
    precision: str = "no",
    work: PassConfig | None = None,
    grid: Grid | None = None,
) -> Path:
    """Encode the shards that have no codes by this image tokenizer yet, each into a folder of its name below `out`; returns
    that. All processes of a group share the work of every shard. Shards that come meanwhile are encoded, too.

    name, precision, work, grid: as of `encode_dataset`.

    Raises:
        ValueError: the image tokenizer has latents; or as `encode_dataset`.
    """
    work = work or PassConfig()
    if tokenizer.is_continuous:
        raise ValueError("Latents are stored of data sets that do not grow: read the same files by their own reader.")
    tokenizer_hash, done = fingerprint(tokenizer), set[str]()
    num_kept = 0
    while todo := _todo(dataset, done, work):
        for shard in todo:
            done.add(shard)
            if not (count := dataset.count(shard)):
                continue
            if is_encoded(out / shard, count, tokenizer_hash, grid):
                num_kept += 1
                continue
            settings: dict[str, Any] = {"precision": precision, "work": work, "grid": grid}
            encode_dataset(tokenizer, dataset.open(shard), out / shard, name=f"{name}/{shard}", **settings)
            work.say(f"{out}: {shard} is encoded, {len(done):,} of {len(dataset.find()):,} shards")
    if num_kept:
        work.say(f"{out}: {num_kept:,} shards had codes already")
    return out


def _todo(dataset: ShardedDataset, done: set[str], work: PassConfig) -> list[str]:
    """The shards that are there now and were not looked at, as the first process sees them."""
    found = [shard for shard in dataset.find() if shard not in done] if work.ranks.number == 0 else []
    return json.loads(work.ranks.gather(json.dumps(found).encode())[0])
