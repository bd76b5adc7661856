"""What a quickstart does on a machine: sizes that follow its speed, what is announced, and what is said where it is missed."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from unimm.cli import quickstart, quickstart_plan
from unimm.cli.compose import compose_config
from unimm.cli.quickstart_plan import (
    CODES_SHARE,
    NAMES,
    Machine,
    expected,
    make_plan,
    measure_machine,
    plain,
    plan_from,
    shortfall,
)
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.suites import SUITES

SLOW = Machine("cpu", "a laptop", 2, "no", 3000.0, 100.0, None)
FAST = replace(SLOW, precision="bf16", positions_per_second=12_000.0, images_per_second=1000.0)
GPU = replace(FAST, device="cuda", name="a GPU", positions_per_second=500_000.0, images_per_second=20_000.0)


def test_sizes_follow_the_speed() -> None:
    plans = [make_plan(machine, 15, 0.75, False) for machine in (SLOW, FAST, GPU)]
    assert [plan.preset for plan in plans] == ["medium", "usual", "long"]
    assert all(one.num_rows <= other.num_rows and one.num_shapes < other.num_shapes for one, other in pairwise(plans))
    assert all(plan.suite in SUITES and plan.compile for plan in plans)
    assert plans[0].expected and plans[1].expected and plans[0].expected < plans[1].expected
    assert make_plan(SLOW, 0.5, 0.75, False).suite == "glance", "half a minute of training is not scored for a whole one"
    assert plans[2].expected is None and "no such run was recorded" in plans[2].describe()


@pytest.mark.parametrize("images_per_second", [0.5, 2.0, 50.0])
def test_coding_keeps_to_its_share(images_per_second: float) -> None:
    plan = make_plan(replace(SLOW, images_per_second=images_per_second), 15, 0.75, False)
    assert (plan.num_shapes + plan.num_digits) / images_per_second <= 0.16 * 15 * 60 + 20
    assert plan.num_shapes > plan.num_digits > 0


def test_compiling_pays_in_long_runs_and_where_it_works() -> None:
    assert not make_plan(SLOW, 2, 0.75, False).compile
    assert not make_plan(replace(SLOW, why_not_compile="there is no compiler"), 15, 0.75, False).compile


def test_more_positions_more_is_expected() -> None:
    for from_nothing in (False, True):
        told = [expected(positions, from_nothing) for positions in (1e5, 1e6, 2e6, 5e6, 9e6)]
        assert all(one is not None and min(one) >= 0 and max(one) <= 1 for one in told)
        assert told == sorted(told)


def test_what_is_missed_is_said_with_its_reason() -> None:
    plan = replace(make_plan(FAST, 15, 0.75, False), expected=(0.8, 0.5, 0.4), positions=8e6)
    scores = {name: {"score": value} for name, value in zip(NAMES, (0.79, 0.45, 0.38), strict=True)}
    assert shortfall(plan, scores, 8e6) is None
    scores["shapes_drawings"]["score"] = 0.1
    assert "shapes_drawings 0.10 instead of 0.40" in str(shortfall(plan, scores, 8e6))
    assert "busier than when it was measured" in str(shortfall(plan, scores, 3e6))
    assert "6.8 million positions instead of 8.0" in str(shortfall(plan, scores, 6.8e6)), "not: as long as planned"
    assert shortfall(replace(plan, expected=None), scores, 3e6) is None


def test_kept_and_read_again() -> None:
    machine, plan = SLOW, make_plan(SLOW, 15, 0.75, False)
    assert plan_from(plain(machine, plan)) == (machine, plan)


def test_the_words_name_what_is_coded() -> None:
    plan = make_plan(SLOW, 15, 0.75, False)
    config = compose_config("encode", ["image_tokenizer=demo", *plan.overrides])
    assert config.data.sources.shapes_draw.dataset.dataset.num_records == plan.num_shapes
    few, many = ShapesWorld(num_records=10), ShapesWorld(num_records=20)
    assert few[3].facts == many[3].facts, "fewer records are the first of many"


def test_a_machine_is_measured_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart_plan, "MIN_PROBE_SECONDS", 0.0)
    monkeypatch.setattr(quickstart_plan, "PROBED_POSITIONS", 32)
    monkeypatch.setattr(quickstart_plan, "PROBED_IMAGES", 2)
    monkeypatch.setattr(quickstart_plan, "why_not_compile", lambda device: f"there is no compiler for a {device}")
    monkeypatch.setattr(quickstart_plan, "choose_precision", lambda asked, device: "no")
    machine = measure_machine("cpu")
    assert machine.precision == "no" and machine.device == str(torch.device("cpu"))
    assert machine.positions_per_second > 0 and machine.images_per_second > 0
    assert "float32" in machine.describe() and "no compiler for a cpu" in machine.describe()


def test_coding_keeps_to_its_share_on_a_machine_that_became_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    coded: list[int] = []
    now = 0.0

    def encode(config: DictConfig) -> None:
        nonlocal now
        number = config.data.sources.shapes_draw.dataset.dataset.num_records
        now += (number - sum(coded)) * seconds_each
        coded.append(number)

    monkeypatch.setattr(quickstart, "encode", encode)
    monkeypatch.setattr(quickstart.time, "monotonic", lambda: now)
    plan = make_plan(SLOW, 15, 0.75, False)
    words = ["out=codes", "image_tokenizer=demo"]
    seconds_each = 0.001
    assert quickstart._codes(plan, 15, words) == plan
    seconds_each, now, coded = 0.05, 0.0, []
    fewer = quickstart._codes(plan, 15, words)
    assert 0.8 * CODES_SHARE < now / (15 * 60) <= CODES_SHARE, "the digits take the rest"
    assert fewer.num_shapes == coded[-1] < plan.num_shapes and coded[0] == round(plan.num_shapes / 8)


def test_a_device_is_checked_before_anything_is_written_and_kept_to_the_end(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    with pytest.raises(ValueError, match="Unknown device 'tpu'"):
        quickstart.quickstart(out, 0, 5, device="tpu")
    assert not out.exists()
    out.mkdir()
    kept = plain(GPU, make_plan(GPU, 5, 0.75, False))
    state = {"seed": 0, "minutes": 5, "from_nothing": False, "done": {"machine": 1.0}, "budgets": {}, "seconds": 1.0, **kept}
    (out / "quickstart.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="holds a quickstart on cuda: leave --device out"):
        quickstart.quickstart(out, 0, 5, device="cpu")
