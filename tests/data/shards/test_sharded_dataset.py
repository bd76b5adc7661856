"""Shards that may grow: an order that is found again whatever has come meanwhile; nothing counted twice; mistakes told."""

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from PIL import Image
from toys import make_config, make_template, make_trainer

from unimm.data.holdout import hold_out
from unimm.data.mixture import Mixture, Source
from unimm.data.order import order_of
from unimm.data.packing import RowLayout
from unimm.data.plan import Plan, Steps
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.records import first_records, known_length
from unimm.data.shards.coded import CodedShards
from unimm.data.shards.dataset import ShardedDataset
from unimm.data.shards.order import ShardedOrder
from unimm.data.stored_plan import store_plan
from unimm.data.views import PlainText
from unimm.training.logbook import read_numbers
from unimm.training.step_inputs import loader_of

pytestmark = pytest.mark.usefixtures("small_windows")

FIELDS = Fields(image=None, caption=None, text="text")


def add_shard(folder: Path, name: str, count: int = 10) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"{name} says {number}."}) + "\n" for number in range(count)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("c.jsonl", "a.jsonl", "more/b.jsonl", "d.jsonl", "e.jsonl"):
        add_shard(tmp_path / "shards", name)
    return tmp_path / "shards"


def open_shards(folder: Path, **settings: Any) -> ShardedDataset:
    return ShardedDataset(folder, JsonLines, fields=FIELDS, **{"mix_shards": 2, **settings})


def texts(dataset: ShardedDataset, numbers: Iterable[int], passes: Path | None = None) -> list[str]:
    """What the stream holds at some numbers, by an order of its own, as in a process that begins there."""
    order = order_of(dataset, 5)
    assert isinstance(order, ShardedOrder)
    if passes is not None:
        order.attach(passes)
    return [str(getattr(order.dataset[order.index(number)].text, "text", "")) for number in numbers]


def test_every_pass_visits_every_record_once_from_any_number_on(folder: Path) -> None:
    dataset = open_shards(folder)
    whole = texts(dataset, range(150))
    first, second, third = (whole[start : start + 50] for start in (0, 50, 100))
    assert sorted(first) == sorted(second) == sorted(third) and len(set(first)) == 50
    assert first != second != third, "and in another order"
    for start in (149, 70, 3):
        assert texts(pickle.loads(pickle.dumps(open_shards(folder))), range(start, 150)) == whole[start:]
    blocks = [{text.split(" says")[0] for text in first[start : start + 20]} for start in (0, 20)]
    assert [len(block) for block in blocks] == [2, 2], "two shards at a time are shuffled"


def test_a_pass_that_another_process_is_still_writing_is_not_decided(folder: Path, tmp_path: Path) -> None:
    """Its folder is there before its entry: who then asks for an early record must not decide it to begin there."""
    run, numbers = tmp_path / "passes", [0, 49, 50, 99, 3]
    (run / "pass-00001").mkdir(parents=True)
    assert texts(open_shards(folder), numbers, run) == texts(open_shards(folder), numbers)
    assert json.loads((run / "pass-00001/shards.json").read_text())["first"] == 50


def test_a_set_that_grows_is_taken_up_by_the_next_pass(folder: Path, tmp_path: Path) -> None:
    before = texts(open_shards(folder), range(50))
    run = tmp_path / "passes"
    assert texts(open_shards(folder), range(20), run) == before[:20]
    add_shard(folder, "0.jsonl", 7)
    (folder / "e.jsonl").rename(tmp_path / "e.jsonl")  # not met again by this pass: it is gone from the next
    add_shard(folder, "e.jsonl")
    whole = texts(open_shards(folder), range(107), run)  # as a run that goes on
    assert whole[:50] == before, "the pass is as it was when it began"
    assert sorted(whole[50:]) == sorted([*before, *(f"0.jsonl says {number}." for number in range(7))])
    add_shard(folder, "1.jsonl", 4)
    for start in (106, 60, 30, 0):
        assert texts(open_shards(folder), range(start, 107), run) == whole[start:]
    assert len(set(texts(open_shards(folder), range(107, 168), run))) == 61
    assert texts(open_shards(folder), range(50, 60)) != whole[50:60], "a run that begins goes through all that is there"
    entry = json.loads((run / "pass-00001/shards.json").read_text())
    assert entry == {"first": 50, "new": {"0.jsonl": (folder / "0.jsonl").stat().st_size}, "gone": []}


def test_what_was_met_is_not_read_again_to_be_counted(folder: Path) -> None:
    read: list[str] = []

    def reader(path: Path) -> JsonLines:
        read.append(path.name)
        return JsonLines(path, FIELDS)

    assert len(ShardedDataset(folder, reader)) == 50 and sorted(set(read)) == [f"{name}.jsonl" for name in "abcde"]
    add_shard(folder, "f.jsonl", 3)
    read.clear()
    dataset = ShardedDataset(folder, reader)
    assert len(dataset) == 53 and set(read) == {"a.jsonl", "f.jsonl"}, "the first one is opened to see whether it can be read"
    assert dataset.key_at(52) == "b.jsonl/9" and dataset[40].key == "f.jsonl/0"
    read.clear()
    order = order_of(ShardedDataset(folder, reader, mix_shards=1), 0)
    order.dataset[order.index(0)]
    assert len(set(read)) <= 2, "nothing behind what is asked for"
    assert known_length(dataset) is None and len(list(first_records(dataset, 12))) == 12


def test_what_is_held_out_stays_so(folder: Path) -> None:
    learned, held = hold_out({"one": open_shards(folder), "two": open_shards(folder)}, 9)
    kept = {name: {records[index].text for index in range(len(records))} for name, records in held.items()}
    assert kept["one"] == kept["two"] and len(kept["one"]) == 9
    add_shard(folder, "0.jsonl")
    later, again = hold_out({"one": open_shards(folder)}, 9)
    assert {again["one"][index].text for index in range(9)} == kept["one"], "though a shard has come before all others"
    told = {getattr(text, "text", "") for text in kept["one"]}
    for dataset, count in ((learned["one"], 41), (later["one"], 51)):
        assert isinstance(dataset, ShardedDataset) and len(dataset) == count
        found = texts(dataset, range(count))
        assert len(set(found)) == count and not told & set(found)
    with pytest.raises(ValueError, match=r"12 records cannot be held out of the 10 of .*: lower held_out"):
        hold_out({"one": open_shards(folder)}, 60)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda folder: add_shard(folder, "c.jsonl", 11),
            r"c\.jsonl cannot be read: it has changed since .* 10 records.*another name",
        ),
        (lambda folder: os.utime(folder / "c.jsonl", (1, 1)), ""),
        (
            lambda folder: (folder / "c.jsonl").unlink(),
            r"c\.jsonl cannot be read: .*[Nn]o such file|c\.jsonl cannot be read: it is gone",
        ),
    ],
)
def test_a_shard_that_was_met_stays_what_it_was(folder: Path, change: Any, match: str) -> None:
    dataset = open_shards(folder)
    assert len(dataset) == 50
    change(folder)
    other = pickle.loads(pickle.dumps(dataset))
    if match:
        with pytest.raises(ValueError, match=match):
            texts(other, range(50))
    else:
        assert len(set(texts(other, range(50)))) == 50, "a copy of it is the same"


def test_a_shard_that_is_still_being_written_is_told(folder: Path, tmp_path: Path) -> None:
    dataset = open_shards(folder)
    order = ShardedOrder(dataset, 0)
    order.attach(tmp_path / "passes")
    add_shard(folder, "c.jsonl", 12)
    with pytest.raises(ValueError, match=r"bytes when this pass over the data began, and now .* move them into their folder"):
        [order.index(number) for number in range(50)]


def test_damaged_shards_are_left_out_where_they_are_few(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "c.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"c\.jsonl cannot be read: .* holds no entries"):
        texts(open_shards(folder), range(50))
    with pytest.raises(ValueError, match=r"1 of 5 shards cannot be read, and max_bad=0\.1 of them may be; .*holds no entries"):
        texts(open_shards(folder, max_bad=0.1), range(50))
    found = texts(open_shards(folder, max_bad=0.3), range(80))
    assert sorted(found[:40]) == sorted(found[40:]) and len(set(found)) == 40
    assert caplog.text.count("is left out") == 1
    for path in folder.rglob("*.jsonl"):
        path.write_text("")
    shutil.rmtree(folder / ".unimm")
    with pytest.raises(ValueError, match=r"holds no entries|None of the first shards"):
        open_shards(folder, max_bad=1.0)


def mixture_of(folder: Path, seed: int = 0) -> Mixture:
    return Mixture([Source("text", open_shards(folder), PlainText())], make_template(), seed)


def losses(folder: Path, steps: int, shards: Path, workers: int = 0) -> list[dict]:
    make_trainer(folder, make_config(steps, num_workers=workers), mixture_of(shards)).fit()
    return [
        {k: v for k, v in line.items() if k.startswith(("loss", "grad_norm"))}
        for line in read_numbers(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_to_the_bit_though_the_set_has_grown(folder: Path, tmp_path: Path, workers: int) -> None:
    """Over the end of a pass; also from a checkpoint alone, in another folder."""
    whole = losses(tmp_path / "whole", 4, folder)
    assert len(json.loads((tmp_path / "whole/passes/text/pass-00000/shards.json").read_text())["new"]) == 5
    losses(tmp_path / "parts", 2, folder, workers)
    shutil.copytree(tmp_path / "parts/checkpoints", tmp_path / "moved/checkpoints")
    for name in ("0", "z"):
        add_shard(folder, f"{name}.jsonl", 25)
    known = len(list((tmp_path / "parts/passes/text").glob("pass-*")))
    resumed = losses(tmp_path / "parts", 4, folder, workers)
    assert known > 1 and resumed == whole and losses(tmp_path / "moved", 4, folder)[-2:] == whole[-2:]


def batches(folder: Path, passes: Path, rank: int, workers: int) -> Iterator[torch.Tensor]:
    mixture = mixture_of(folder)
    mixture.attach(passes)
    steps = Steps(Plan(mixture, 64, 4), rank=rank, num_ranks=2, num_steps=24)
    return (step.batches[0].tokens for step in loader_of(steps, 0, workers, torch.device("cpu")))


def test_ranks_and_workers_agree_on_what_has_come(folder: Path, tmp_path: Path) -> None:
    """A shard comes while the first rank is ahead: the second one, and what reads alone, go through the same passes."""
    first = batches(folder, tmp_path / "passes", 0, 2)
    begun = [next(first) for _ in range(3)]
    add_shard(folder, "0.jsonl", 30)
    second = list(batches(folder, tmp_path / "passes", 1, 0))
    add_shard(folder, "1.jsonl", 30)
    own = [*begun, *first]
    for rank, expected in ((0, own), (1, second)):
        assert all(torch.equal(a, b) for a, b in zip(batches(folder, tmp_path / "passes", rank, 0), expected, strict=True))
    assert len(list((tmp_path / "passes/text").glob("pass-*"))) > 2


def test_there_is_no_stored_plan_of_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'text' is in shards that may grow, and has no stored plan: leave trainer.plan out"):
        store_plan(tmp_path / "plan", mixture_of(folder), RowLayout(64, 9), 1)


def add_pictures(folder: Path, name: str, count: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        picture = f"{Path(name).stem}{number}.png"
        Image.fromarray(np.full((16, 16, 3), 20 * number + len(name), dtype=np.uint8)).save(folder / picture)
        lines.append(json.dumps({"image": picture, "caption": f"{name} {number}"}))
    (folder / name).write_text("\n".join(lines))


def test_only_new_shards_are_encoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from unimm.precompute import coded_shards

    made: list[str] = []
    encode = coded_shards.encode_dataset

    def counting(*given: Any, **settings: Any) -> Any:
        made.append(given[2].name)
        return encode(*given, **settings)

    tiny_tokenizer = tiny_image_tokenizer()
    folder, codes = tmp_path / "shards", tmp_path / "codes"
    open_pictures = partial(ShardedDataset, folder, partial(JsonLines, fields=Fields(image="image", caption="caption")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded_shards, "encode_dataset", counting)
        add_pictures(folder, "a.jsonl")
        with pytest.raises(ValueError, match=r"holds no codes of any shard .* make them with `unimm encode`"):
            CodedShards(open_pictures(), codes)
        coded_shards.encode_shards(tiny_tokenizer, open_pictures(), codes)
        add_pictures(folder, "bb.jsonl")
        coded = CodedShards(open_pictures(), codes)
        assert len(coded) == 3 and "1 of 2 shards" in caplog.text and "have no codes" in caplog.text
        coded_shards.encode_shards(tiny_tokenizer, open_pictures(), codes)
    assert made == ["a.jsonl", "bb.jsonl"]
    coded = CodedShards(open_pictures(), codes)
    order = order_of(pickle.loads(pickle.dumps(coded)), 3)
    found = {order.dataset[order.index(number)].key: order.dataset[order.index(number)].codes for number in range(6)}
    assert len(found) == 6 and all(one is not None for one in found.values())
    assert (found["bb.jsonl/2"] == coded[5].codes).all()
