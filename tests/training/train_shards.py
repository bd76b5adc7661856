"""A short run on shards of text, for `test_shards_in_processes`: train_shards.py FOLDER SHARDS STEPS WORKERS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toys import make_config, make_template, make_trainer

from unimm.cli.compose import leave_group
from unimm.data.mixture import Mixture, Source
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.shards.dataset import ShardedDataset
from unimm.data.views import PlainText


def train(folder: Path, shards: Path, steps: int, workers: int) -> None:
    """Steps of 4 rows."""
    dataset = ShardedDataset(shards, JsonLines, mix_shards=2, fields=Fields(image=None, caption=None, text="text"))
    mixture = Mixture([Source("text", dataset, PlainText())], make_template())
    make_trainer(folder, make_config(steps, num_rows=4, num_workers=workers), mixture).fit()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    leave_group()
