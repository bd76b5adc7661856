"""`unimm compare`: any evaluations beside each other, item by item, and beside what others have published."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.eval.report.paired import read_items
from unimm.eval.report.published import benchmarks, find_published, sources

RIGHT = [True] * 60 + [False] * 40
BETTER = [True] * 72 + [False] * 28
"""Twelve items more, and none less: McNemar's p is 2 / 2^12."""


def evaluate(folder: Path, task: str, right: list[bool], key: str = "k", prompt: str = "What?") -> Path:
    """An evaluation as `unimm eval` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = json.loads((folder / "scores.json").read_text())["tasks"] if (folder / "scores.json").is_file() else {}
    tasks[task] = {"score": sum(right) / len(right), "count": len(right)}
    (folder / "scores.json").write_text(json.dumps({"finished": True, "tasks": tasks}))
    with (folder / "answers.jsonl").open("a", encoding="utf-8") as lines:
        for number, one in enumerate(right):
            lines.write(json.dumps({"task": task, "key": f"{key}/{number}", "prompt": prompt, "correct": one}) + "\n")
    return folder


def call(*words: object):
    return CliRunner().invoke(app, ["compare", *(str(word) for word in words)])


def against(out: Path, variant: str, column: str = "answers") -> dict:
    return json.loads((out / "compare.json").read_text())[variant][column]["against"]


def test_evaluations_runs_and_models_stand_beside_each_other(tmp_path: Path) -> None:
    """The first is what the others are compared with, unless another is named."""
    evaluate(tmp_path / "plain", "answers", RIGHT)
    evaluate(tmp_path / "run/scores", "answers", BETTER)
    evaluate(tmp_path / "other/scores", "answers", RIGHT)
    (tmp_path / "other/model").mkdir()
    (tmp_path / "other/model/config.json").write_text("{}")
    words = [tmp_path / "plain", tmp_path / "run", tmp_path / "other/model", "--out", tmp_path / "out"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "+0.120" in result.output and "McNemar" in result.output and "*" in result.output
    found = against(tmp_path / "out", "run")
    assert (found["baseline"], found["value"], found["num_items"]) == ("plain", pytest.approx(0.12), 100)
    assert found["p"] == pytest.approx(2 / 2**12) and found["p_holm"] == pytest.approx(4 / 2**12)
    assert against(tmp_path / "out", "model")["p"] == 1.0
    assert call(*words, "--baseline", "run").exit_code == 0
    assert against(tmp_path / "out", "plain")["value"] == pytest.approx(-0.12)
    refused = call(*words, "--baseline", "nobody")
    assert refused.exit_code == 2 and "There is no 'nobody' to compare with: choose among plain, run, model" in refused.stderr


def test_variants_of_an_ablation_are_compared_by_their_means_over_seeds(tmp_path: Path) -> None:
    for run, right in (("a-0", RIGHT), ("a-1", RIGHT[::-1]), ("b-0", BETTER), ("b-1", BETTER[::-1])):
        evaluate(tmp_path / run / "scores", "answers", right)
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    found = against(tmp_path, "b")
    assert (found["test"], found["value"], found["num_items"]) == ("bootstrap", pytest.approx(0.12), 100)
    assert found["p_holm"] == found["p"] < 0.001


def test_only_the_same_items_are_compared(tmp_path: Path) -> None:
    """The same key with another question is another item; without one in common there is a sentence, and no p value."""
    evaluate(tmp_path / "one", "answers", RIGHT)
    evaluate(tmp_path / "two", "answers", BETTER, prompt="Which?")
    result = call(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "no answers to the same items are here" in result.stderr.replace("\n", " ")
    assert "against" not in json.loads((tmp_path / "out/compare.json").read_text())["two"]["answers"]
    evaluate(tmp_path / "two", "answers", BETTER[:50])
    call(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert against(tmp_path / "out", "two")["num_items"] == 50


def test_a_training_without_an_evaluation_has_its_last_validation(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lines = [{"step": step, "validation/answers": step / 10, "loss/text": 1.0} for step in (5, 9)]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(tmp_path / "done", "answers", RIGHT)
    result = call(tmp_path / "run", tmp_path / "done", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "run was not evaluated: its scores are those of its last validation" in result.stderr
    assert json.loads((tmp_path / "out/compare.json").read_text())["run"]["answers"]["mean"] == 0.9


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Name a folder of runs, or the evaluations to compare; or add --published"),
        (["one", "nothing"], "nothing holds no scores: `unimm eval --model MODEL --out"),
        (["one", "one"], "The same evaluation is named twice"),
        (["one", "broken"], "answers.jsonl, line 1, is no answer as `unimm eval` writes them"),
        (["--published", "--task", "poems"], "Nothing published is kept of 'poems': choose among geneval"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(tmp_path / "one", "answers", RIGHT)
    evaluate(tmp_path / "broken", "answers", RIGHT)
    (tmp_path / "broken/answers.jsonl").write_text('{"task": "answers"}\n')
    (tmp_path / "nothing").mkdir()
    result = call(*words)
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.output


def test_a_score_that_is_no_share_says_its_unit_and_direction(tmp_path: Path) -> None:
    """Its items have values of their own; what is not finite is left out."""
    for name, value in (("one", 9.0), ("two", 8.5)):
        evaluate(tmp_path / name, "perplexity", RIGHT)
        tasks = {"perplexity": {"score": value, "count": 100, "unit": "nats", "higher_is_better": False}}
        tasks["broken"] = {"score": None, "count": 100, "unit": "dB"}
        (tmp_path / name / "scores.json").write_text(json.dumps({"finished": True, "tasks": tasks}))
        lines = [
            {"task": "perplexity", "key": str(n), "prompt": "", "correct": False, "value": value + n / 100 - 0.095}
            for n in range(20)
        ]
        (tmp_path / name / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = call(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "lower is" in result.stdout and "broken" not in result.stdout
    found = against(tmp_path / "out", "two", "perplexity")
    assert (found["test"], found["value"]) == ("bootstrap", pytest.approx(-0.5)) and found["p"] < 0.001


def test_an_item_that_is_asked_twice_is_two(tmp_path: Path) -> None:
    lines = [{"task": "t", "key": "k", "prompt": "?", "correct": right} for right in (True, False)]
    lines.append({"task": "t", "key": "k", "prompt": "?", "correct": True, "value": 0.25})
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_items(tmp_path / "answers.jsonl")["t"].values()) == [1.0, 0.0, 0.25]


# -- what others have published -------------------------------------------------------------------------------------------


def test_every_published_figure_has_a_source_and_a_sound_unit() -> None:
    assert {source.kind for source in sources().values()} == {"paper", "reproduced"}
    assert {source.evidence for source in sources().values()} <= {"read", "secondary", "recalled"}
    most = {"share": 1.0, "percent": 100.0, "points": 2000.0, "FID": 100.0}
    figures = find_published([])
    assert {figure.benchmark for figure in figures} == set(benchmarks())
    for figure in figures:
        highest = most[benchmarks()[figure.benchmark].unit]
        values = [value for value in (figure.value, *figure.parts.values()) if value is not None]
        assert values and all(0 < value <= highest for value in values), figure
        assert figure.source.title and figure.source.where


def test_parts_of_a_score_make_it_up() -> None:
    """As printed: GenEval is the mean of its six categories."""
    for figure in find_published(["geneval"]):
        if len(figure.parts) == 6 and figure.value is not None:
            assert sum(figure.parts.values()) / 6 == pytest.approx(figure.value, abs=0.006), figure


def test_papers_stand_before_what_others_reproduced() -> None:
    ours = [figure for figure in find_published(["geneval"]) if figure.model == "Janus-Pro-7B"]
    assert [(one.value, one.source.kind) for one in ours][:2] == [(0.80, "paper"), (0.7892, "reproduced")]


def test_scores_stand_beside_what_is_published_in_its_unit(tmp_path: Path) -> None:
    evaluate(tmp_path / "mine", "pope", RIGHT)
    result = call(tmp_path / "mine", "--published", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any("mine" in line and "60" in line for line in lines), result.stdout  # percent, as POPE is published
    assert "Janus-Pro-7B" in result.stdout and "GenEval" not in result.stdout
    alone = call("--published", "--task", "coco_fid")
    assert alone.exit_code == 0 and "lower is better" in alone.stdout and "8.53" in alone.stdout
