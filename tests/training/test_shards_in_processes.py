"""Two processes with two loading processes each learn from shards that grow: it goes on to the bit, over the end of a pass."""

import json
from pathlib import Path

import pytest
from launching import run_ranks

from unimm.training.logbook import read_numbers

SCRIPT = Path(__file__).with_name("train_shards.py")


def add_shard(folder: Path, name: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"{name} says {number}."}) for number in range(count)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))


def numbers(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in one.items() if k.startswith(("loss", "grad_norm"))} for one in read_numbers(folder / "metrics.jsonl")
    ]


@pytest.mark.slow(seconds=60)
def test_two_processes_go_on_though_the_set_has_grown(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    for name in "abcd":
        add_shard(shards, name, 20)
    run_ranks(SCRIPT, tmp_path / "whole", shards, 6, 0)
    run_ranks(SCRIPT, tmp_path / "parts", shards, 3, 2)
    known = len(list((tmp_path / "parts/passes/text").glob("pass-*")))
    add_shard(shards, "0", 50)
    run_ranks(SCRIPT, tmp_path / "parts", shards, 6, 2)
    assert known > 1 and numbers(tmp_path / "parts") == numbers(tmp_path / "whole") and len(numbers(tmp_path / "whole")) == 6
