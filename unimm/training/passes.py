"""A run's passes over data in shards that may grow (`unimm.data.shards`): agreed on in its folder, and kept in its checkpoints.

FOLDER/passes/SOURCE/pass-00000/shards.json
"""

import shutil
from pathlib import Path
from typing import Any

from unimm.data.mixture import Mixture
from unimm.data.shards.order import ShardedOrder
from unimm.data.shards.passes import read_passes, write_passes
from unimm.runtime.rank_sync import Ranks

PASSES = "passes"


def keep_passes(mixture: Mixture, folder: Path, ranks: Ranks, kept: dict[str, Any] | None) -> None:
    """Have a mixture go by the passes of a run's folder, on every process.

    kept: those of the checkpoint that the run goes on with, by source; None: it begins, and what lies there is of another run.
    """
    names = _sharded(mixture)
    if names and ranks.number == 0:
        if kept is None:
            shutil.rmtree(folder / PASSES, ignore_errors=True)
        for name in names:
            write_passes(folder / PASSES / name, (kept or {}).get(name, []))
    ranks.barrier()
    mixture.attach(folder / PASSES)


def kept_passes(mixture: Mixture, folder: Path) -> dict[str, Any]:
    """What a checkpoint keeps of them: empty where no source is in such shards."""
    names = _sharded(mixture)
    return {PASSES: {name: read_passes(folder / PASSES / name) for name in names}} if names else {}


def _sharded(mixture: Mixture) -> list[str]:
    both = zip(mixture.sources, mixture.orders, strict=True)
    return [source.name for source, order in both if isinstance(order, ShardedOrder)]
