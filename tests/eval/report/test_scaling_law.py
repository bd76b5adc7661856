"""Scaling laws: one that made the losses is found again; too few runs are refused; the verb reads what trainings leave."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.eval.report import scaling_law
from unimm.eval.report.scaling_law import Law, Run, count_lengths, fit_without_each
from unimm.inference.engine import Engine

TRUE = Law(floor=0.5, a=30.0, alpha=0.35, b=400.0, beta=0.4)
SIZES = (3e5, 1.2e6, 4.7e6, 1.1e7)
LENGTHS = (1e6, 2e6, 4e6)


def make_runs(noise: float = 0.0) -> list[Run]:
    """A run of each size and length."""
    rng = np.random.default_rng(0)
    pairs = [(size, length) for size in SIZES for length in LENGTHS]
    return [
        Run(f"{n:.0f}-{d:.0f}", int(n), d, {"text": TRUE(n, d) * np.exp(noise * rng.standard_normal())}, {}) for n, d in pairs
    ]


FOUND: dict[str, Law] = {}
SEARCH = scaling_law.fit


def fit(runs: list[Run], kind: str, near: Law | None = None) -> Law:
    """What is found for the same runs is the same: they are searched, which takes seconds, once for all tests."""
    asked = repr((kind, near, [(run.parameters, run.positions, run.losses.get(kind)) for run in runs]))
    if asked not in FOUND:
        FOUND[asked] = SEARCH(runs, kind, near)
    return FOUND[asked]


@pytest.fixture(autouse=True)
def each_search_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("unimm.eval.report.scaling_law", "unimm.cli.scaling"):
        monkeypatch.setattr(f"{module}.fit", fit)


def test_a_law_is_found_again() -> None:
    """Inside what was seen to a thousandth; ten times beyond it to a hundredth."""
    law = fit(make_runs(), "text")
    for n in (5e5, 5e6):
        assert law(n, 3e6) == pytest.approx(TRUE(n, 3e6), rel=1e-3)
    assert law(1e8, 4e7) == pytest.approx(TRUE(1e8, 4e7), rel=0.03)
    assert law.alpha == pytest.approx(TRUE.alpha, abs=0.03) and law.beta == pytest.approx(TRUE.beta, abs=0.03)


def test_noise_widens_what_is_said_of_larger_runs() -> None:
    spreads = []
    for noise in (0.0, 0.02):
        told = [law(1e9, 2e10) for law in fit_without_each(make_runs(noise), "text")]
        assert min(told) > 0
        spreads.append(max(told) - min(told))
    assert spreads[0] < 0.1 < spreads[1]


@pytest.mark.parametrize("kept", [slice(0, 5), slice(0, 6), slice(0, 12, 3)])
def test_too_few_runs_determine_no_law(kept: slice) -> None:
    """Five; six of two sizes; four of one length."""
    with pytest.raises(ValueError, match="do not determine a law: train at least 6, of 3 sizes and 3 lengths"):
        fit(make_runs()[kept], "text")


def test_lengths_that_differ_by_how_full_rows_were_are_one() -> None:
    """Eight runs of four sizes, all of a million positions or nearly so, say nothing of D."""
    rng = np.random.default_rng(0)
    runs = [replace(run, positions=1e6 * (1 + 0.01 * rng.standard_normal())) for run in make_runs()[:8]]
    assert count_lengths(runs) == 1 and count_lengths(make_runs()) == 3
    assert count_lengths([replace(run, positions=run.positions / 1e4) for run in make_runs()]) == 3
    with pytest.raises(ValueError, match="of 3 sizes and 1 lengths"):
        fit(runs, "text")


def test_what_runs_do_not_determine_is_named() -> None:
    assert not fit(make_runs(), "text").undetermined
    flat = [replace(run, losses={"text": 30.0 / run.parameters**0.35}) for run in make_runs()]
    assert "floor" in fit(flat, "text").undetermined


def test_a_prediction_takes_a_run_to_spare() -> None:
    """Six runs determine a law and, without one, none."""
    six = [run for number, run in enumerate(make_runs()) if number in (0, 2, 4, 6, 8, 10)]
    fit(six, "text")
    with pytest.raises(ValueError, match=r"Without one of them, the 6 runs with a loss of text determine no law.*at least 7"):
        fit_without_each(six, "text")


@pytest.fixture(scope="module")
def folder(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What eight trainings left, of the tiny model, and one that was not finished."""
    runs = tmp_path_factory.mktemp("runs")
    for length in range(1, 9):
        one = runs / f"run-{length}"
        tiny_engine.save(one / "model")
        lines = [
            {"step": length * part, "loss/text": TRUE(4e4, 1e6 * length) + (part < 19), "data/fill": 0.5}
            for part in range(1, 21)
        ]
        (one / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (one / "config.yaml").write_text("trainer:\n  num_rows: 4\n  num_positions: 50\n")
    (runs / "broken").mkdir()
    (runs / "broken/metrics.jsonl").write_text("")
    return runs


def test_what_trainings_left_is_read(folder: Path, tiny_engine: Engine) -> None:
    """The mean of the last tenth; positions that hold something; runs that are not finished are named."""
    from unimm.eval.report.scaling_law import find_runs

    runs, unfinished = find_runs(folder)
    assert unfinished == ["broken"] and len(runs) == 8
    first = next(run for run in runs if run.name == "run-3")
    assert first.losses["text"] == pytest.approx(TRUE(4e4, 3e6))
    assert first.positions == 60 * 4 * 50 * 0.5
    assert first.parameters == sum(parameter.numel() for parameter in tiny_engine.model.trunk.parameters())


def test_the_verb_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for words, told in (
        ([str(folder)], "8 runs of 1 sizes and 8 lengths with a loss of text do not determine a law"),
        ([str(folder), "--predict", "inf:1e9"], "'inf:1e9' is no run to predict"),
        ([str(folder), "--predict", "big"], "'big' is no run to predict: give PARAMETERS:TOKENS, such as 1e9:20e9."),
        ([str(tmp_path)], "holds no finished trainings"),
    ):
        result = CliRunner().invoke(app, ["scaling", *words])
        assert result.exit_code == 2 and told in " ".join(result.stderr.split()), result.output


def test_a_kind_that_few_runs_learned_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [
        replace(run, losses={**run.losses, "codes": 1.0} if number < 3 else run.losses)
        for number, run in enumerate(make_runs())
    ]
    monkeypatch.setattr("unimm.cli.scaling.find_runs", lambda folder: (runs, []))
    result = CliRunner().invoke(app, ["scaling", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "No law of codes, since it takes more than 3 runs of 1 sizes and 3 lengths." in " ".join(result.stderr.split())
    assert list(json.loads((tmp_path / "out/scaling.json").read_text())["laws"]) == ["text"]


@pytest.mark.parametrize("num_scored", [0, 5, 12])
def test_the_verb_writes_a_table_a_plot_and_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_scored: int) -> None:
    """With scores of no runs, of some (of one size none), of all; of five tasks, so that panels go on in another row."""
    scores = {f"task_{number}": 0.1 * number for number in range(5)}
    runs = [replace(run, scores=scores if number < num_scored else {}) for number, run in enumerate(make_runs(0.01))]
    monkeypatch.setattr("unimm.cli.scaling.find_runs", lambda folder: (runs, ["late"]))
    result = CliRunner().invoke(app, ["scaling", str(tmp_path), "--predict", "1e9:20e9", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "not finished: late" in result.stderr and "1B parameters and 20B tokens" in result.stdout
    content = json.loads((tmp_path / "out/scaling.json").read_text())
    assert len(content["runs"]) == 12 and content["predictions"][0]["loss"] < min(r["losses"]["text"] for r in content["runs"])
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")
