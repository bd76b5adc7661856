"""An evaluation that is killed goes on answer by answer, with any number of processes, and ends as one that was left alone."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimm.eval import Example, ItemTask, Result, Score, Task, collect, evaluate, summarize


class Asked:
    """In place of an engine: notes what it is asked, and dies at an item."""

    def __init__(self, dies_at: str = "") -> None:
        self.items: list[str] = []
        self.dies_at = dies_at

    def ask(self, item: str) -> str:
        if item == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.items.append(item)
        return item[::-1]


class AnotherModel(Asked):
    pass


@dataclass(frozen=True)
class Squares(ItemTask):
    """Of items with images, soft scores and codes; one of three is right."""

    name: str = "squares"
    num_items: int = 210
    batch_size: int = 16
    start: int = 0

    def ask(self, engine: Any, items: list[int]) -> Iterator[Example]:
        for item in items:
            answer = engine.ask(f"{self.name}/{item}")
            image = np.full((2, 3, 3), item % 256, np.uint8)
            numbers = {"root": item**0.5 + self.start}
            yield Example(
                str(item), f"{item}\u00b2?", str(item * item), answer, item % 3 == 1, "" if item % 3 == 1 else "wrong",
                category=f"of {item % 3}", language="en", drawn=True, image=image, original=image, codes=np.full((1, 2), item),
                value=item % 3 / 7, numbers=numbers,
            )  # fmt: skip

    def score(self, examples: list[Example]) -> Result:
        assert [int(example.key) for example in examples] == list(range(self.num_items))
        roots = Score.mean([example.numbers["root"] for example in examples], "roots", higher_is_better=False)
        codes = sum(int(example.codes.sum()) for example in examples if example.codes is not None)
        return summarize(self.name, examples, {"codes": codes}, other_scores={"roots": roots})


class Whole:
    """A task that scores itself, as those of before `ItemTask`."""

    name = "whole"
    num_items = 9

    def run(self, engine: Any, progress: Any) -> Result:
        asked = [engine.ask(f"whole/{number}") for number in range(9)]
        examples = [Example(str(number), "?", "", text, number > 0) for number, text in enumerate(asked)]
        return summarize(self.name, collect(examples, progress), {"half": 0.5})


def tasks() -> list[Task]:
    return [Squares(), Whole(), Squares("more", 30)]


def run(folder: Path, engine: Any = None, chosen: list[Task] | None = None, **settings: Any) -> Any:
    return evaluate(engine or Asked(), chosen or tasks(), folder, progress=False, **settings)


def killed(folder: Path, dies_at: str, **settings: Any) -> None:
    """An evaluation in a process of its own, which is killed at this item; a part of a line is left as a kill may leave it."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, Asked(dies_at)), kwargs=settings)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    written = next(folder.glob("answers*.jsonl"))
    written.write_bytes(written.read_bytes() + b'{"task": "squares", "item": 209, "key": "2')


def content(folder: Path) -> dict[str, Any]:
    """All that an evaluation leaves, without what depends on the clock."""
    files: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["scores.json"] = scores = json.loads(files["scores.json"])
    for task in scores["tasks"].values():
        del task["seconds"]
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an evaluation leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    found = content(folder)
    assert found["scores.json"]["finished"] and list(found["scores.json"]["tasks"]) == ["squares", "whole", "more"]
    assert found["scores.json"]["settings"]["model"] == "Asked"
    assert {"evaluation.json", "answers.jsonl", "scores.json", "squares.png"} < {*found}
    return found


def test_a_killed_one_goes_on_after_its_answers(whole: dict[str, Any], tmp_path: Path) -> None:
    killed(tmp_path, "squares/77")
    assert not (tmp_path / "scores.json").exists()
    engine = Asked()
    report = run(tmp_path, engine)
    assert engine.items[:133] == [f"squares/{item}" for item in range(77, 210)] and len(engine.items) == 133 + 9 + 30
    assert content(tmp_path) == whole
    assert report["squares"].total.interval is not None and report["whole"].score == pytest.approx(8 / 9)
    again = Asked()
    assert run(tmp_path, again)["squares"] == report["squares"] and not again.items, "what is finished is not asked again"
    assert content(tmp_path) == whole


def test_a_task_that_scores_itself_starts_again(whole: dict[str, Any], tmp_path: Path) -> None:
    killed(tmp_path, "whole/5")
    assert list(json.loads((tmp_path / "scores.json").read_text())["tasks"]) == ["squares"]
    engine = Asked()
    run(tmp_path, engine)
    assert engine.items[:9] == [f"whole/{number}" for number in range(9)] and len(engine.items) == 39
    assert content(tmp_path) == whole


def test_several_processes_leave_what_one_leaves(whole: dict[str, Any], tmp_path: Path) -> None:
    engines = [Asked(), Asked(), Asked()]
    reports = [run(tmp_path, engine, shard=(number, 3), batch_size=5) for number, engine in enumerate(engines)]
    assert [len(report.results) for report in reports] == [0, 0, 3], "the last one puts all together"
    assert sorted(item for engine in engines for item in engine.items) == sorted(
        [f"squares/{n}" for n in range(210)] + [f"whole/{n}" for n in range(9)] + [f"more/{n}" for n in range(30)]
    )
    assert content(tmp_path) == whole


def test_they_may_be_others_when_it_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, shard=(1, 2))
    killed(tmp_path, "squares/100", shard=(0, 2))
    run(tmp_path, shard=(2, 3))
    engine = Asked()
    run(tmp_path, engine)
    assert 0 < len(engine.items) < 120 and content(tmp_path) == whole


def test_the_size_of_batches_changes_nothing(whole: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, batch_size=1)
    assert content(tmp_path) == whole
    assert evaluate(Asked(), tasks(), progress=False, batch_size=7).scores()["more"]["score"] == pytest.approx(1 / 7)


def test_an_answer_whose_image_is_gone_is_asked_again(whole: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "images/squares-00003.png").unlink()
    engine = Asked()
    run(tmp_path, engine)
    assert engine.items == ["squares/3"] and content(tmp_path) == whole


def test_another_model_or_other_arguments_are_refused(tmp_path: Path) -> None:
    run(tmp_path, chosen=[Squares()])
    before = content(tmp_path)
    for engine, task, told in (
        (AnotherModel(), Squares(), "holds answers of another model .Asked, now AnotherModel"),
        (Asked(), Squares(start=1), "holds answers to squares with other arguments:"),
        (Asked(), Squares(num_items=5), "holds answers to squares with other arguments .210 items, now 5."),
    ):
        with pytest.raises(ValueError, match=told + r".*name another folder \(--out\), or replace it \(--overwrite\)"):
            run(tmp_path, engine, [task])
        assert content(tmp_path) == before, "nothing is overwritten"
    with pytest.raises(ValueError, match="existing is resume, replace or restart, not 'append'"):
        run(tmp_path, existing="append")
    with pytest.raises(ValueError, match="Shard 2 of 2 is none: of 2 there are 0/2 and 1/2"):
        run(tmp_path, shard=(2, 2))
    with pytest.raises(ValueError, match="Several processes put their answers together in a folder"):
        evaluate(Asked(), tasks(), progress=False, shard=(0, 2))


@pytest.mark.parametrize("export", [True, False])
def test_images_that_no_evaluation_made_stay(export: bool, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.png").write_bytes(b"a year of work")
    if export:
        (tmp_path / "manifest.json").write_text("{}")
        (tmp_path / "scores.json").write_text("{}")
    for existing in ("resume", "restart"):
        with pytest.raises(ValueError, match="holds images that no evaluation made"):
            run(tmp_path, existing=existing)
    assert (tmp_path / "images/mine.png").read_bytes() == b"a year of work"


def test_scores_of_an_older_unimm_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"finished": true, "tasks": {}}')
    with pytest.raises(ValueError, match="holds scores of an unknown model, as an older unimm wrote them"):
        run(tmp_path)
    assert (tmp_path / "scores.json").read_text() == '{"finished": true, "tasks": {}}'
    run(tmp_path, existing="replace")
    assert content(tmp_path)["scores.json"]["finished"]


def test_what_is_there_is_replaced_where_one_says_so(whole: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, AnotherModel(), [Squares(num_items=100)])
    engine = Asked()
    run(tmp_path, engine, existing="replace")
    assert len(engine.items) == 249 and content(tmp_path) == whole
    same, anew = Asked(), Asked()
    run(tmp_path, same, existing="replace")
    run(tmp_path, anew, existing="restart")
    assert not same.items and len(anew.items) == 249 and content(tmp_path) == whole
    with pytest.raises(ValueError, match=r"Several processes cannot replace what is in .*: remove it first"):
        run(tmp_path, shard=(0, 2), existing="restart")


def test_further_tasks_of_the_model_come_beside_the_first(whole: dict[str, Any], tmp_path: Path) -> None:
    first = [Squares(), Whole()]
    run(tmp_path, chosen=[first[0]])
    engine = Asked()
    report = run(tmp_path, engine, [first[1], Squares("more", 30)])
    assert len(engine.items) == 39 and list(report.results) == ["whole", "more"]
    assert content(tmp_path) == whole
