"""The folder of an evaluation: every answer as it comes, so that a run that was killed goes on, with any number of processes.

    evaluation.json         what the answers are of: the model, its precision, and each task with its arguments
    answers.jsonl           one line an item: task, item, key, category, language, prompt, expected, answer, correct, reason;
                            and value, numbers, drawn, image, original and codes, where there are any
    images/                 the images that these lines name
    scores.json             {"finished": ..., "settings": ..., "tasks": {name: what `Result.plain` gives, and seconds}}
    NAME.png                drawings with their prompts, or reconstructions below their originals
    answers-1-of-2.jsonl, scores-1-of-2.json    the same, of one process of several, until all are done

A line is written when its image is on disk. What a kill has left of a last line is dropped, and its item asked again. Each of
several processes writes files of its own and reads those of all. The one that finds every answer there puts them together.
"""

import bisect
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from unimm.eval.fingerprints import COMPARED, describe_task
from unimm.eval.task import PICTURES_KEPT, Example, ImageRetention, ItemTask, Task
from unimm.runtime.atomic_files import read_json, write_json
from unimm.runtime.provenance import write_image

EXISTING = ("resume", "replace", "restart")
"""What becomes of answers that are there: go on after one's own and refuse others; go on, or replace others; replace any."""

RECORD, ANSWERS, SCORES, IMAGES = "evaluation.json", "answers.jsonl", "scores.json", "images"

TEXTS = ("key", "category", "language", "prompt", "expected", "answer", "correct", "reason")
"""What a line has of every example."""

Shard = tuple[int, int]
"""Which of how many processes."""

WHOLE: Shard = (0, 1)

Line = dict[str, Any]


class AnswerFolder:
    """The files of an evaluation, as one process sees them.

    Args:
        folder: is made where it is not there.
        settings: of `describe_engine`.
        tasks: those to be answered now; answers and scores of others stay where they are.
        shard: which process this is, of how many.
        existing: one of `EXISTING`.

    Raises:
        ValueError: the folder holds answers of another model, precision or arguments; nothing has changed then.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], tasks: list[Task], shard: Shard = WHOLE, existing: str = "resume"
    ) -> None:
        if existing not in EXISTING:
            raise ValueError(f"existing is {', '.join(EXISTING[:-1])} or {EXISTING[-1]}, not {existing!r}.")
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"Shard {shard[0]} of {shard[1]} is none: of 2 there are 0/2 and 1/2.")
        self.folder, self.settings, self.shard = folder, settings, shard
        self.tasks = {task.name: task for task in tasks}
        described = {name: describe_task(task) for name, task in self.tasks.items()}
        self._check_is_ours()
        record = read_json(folder / RECORD)
        problem = self._problem(record, described)
        if existing == "restart" or (existing == "replace" and problem):
            self._clear()
            record = None
        elif problem:
            raise ValueError(f"{folder} holds {problem}: name another folder (--out), or replace it (--overwrite).")
        elif record is None and shard == WHOLE:
            self._clear()
        elif record is None and (folder / ANSWERS).is_file() and not (folder / RECORD).is_file():
            raise ValueError(f"Several processes cannot replace the answers of an older unimm in {folder}: remove it first.")
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        self._record = {**settings, "tasks": {**(record or {}).get("tasks", {}), **described}}
        if self._record != record:
            _replace(folder / RECORD, lambda path: write_json(path, self._record))
        self.answers: dict[str, dict[int, Line]] = {}
        self.scores: dict[str, dict[str, Any]] = {}
        self._own_scores: dict[str, dict[str, Any]] = {}
        self._wrong: dict[str, list[int]] = {}
        self._lines: TextIO | None = None

    def open(self) -> None:
        """Read what is there, and begin to write: behind one's own lines, or, of a single process, behind those of all."""
        self.read()
        name = ANSWERS if self.shard == WHOLE else "answers-{}-of-{}.jsonl".format(*self.shard)
        if self.shard == WHOLE:
            self._put_together()
        elif (self.folder / name).is_file():
            own = [line for line in _read_lines(self.folder / name) if self._is_kept(line)]
            _replace(self.folder / name, lambda path: _write_lines(path, own))
            self._own_scores = _read_scores(self._own_scores_path) or {}
        self._lines = (self.folder / name).open("a", encoding="utf-8")

    def close(self) -> None:
        """Write no more."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def read(self) -> None:
        """Read the answers and scores of all processes."""
        self.scores = {}
        for path in (self.folder / SCORES, *self._parts("scores", "json")):
            if (content := _read_scores(path)) is not None:
                self.scores |= content
        self.answers = {name: {} for name in self._record["tasks"]}
        for path in (self.folder / ANSWERS, *self._parts("answers", "jsonl")):
            for line in _read_lines(path):
                if self._is_kept(line):
                    self.answers[line["task"]].setdefault(line["item"], line)
        self._wrong = {
            task: sorted(item for item, line in lines.items() if not line["correct"] and item >= PICTURES_KEPT)
            for task, lines in self.answers.items()
        }

    def missing(self, task: Task) -> list[int]:
        """The items of a task that no process has answered, as far as it was read; of a task that scores itself all, until its
        score is there."""
        if not isinstance(task, ItemTask):
            return [] if task.name in self.scores else list(range(task.num_items))
        return [item for item in range(task.num_items) if item not in self.answers[task.name]]

    def write(self, task_name: str, item: int, example: Example) -> None:
        """One answer."""
        assert self._lines is not None, "open it first"
        line: Line = {"task": task_name, "item": item} | {name: getattr(example, name) for name in TEXTS}
        line["correct"] = bool(example.correct)
        if example.value is not None:
            line["value"] = float(example.value)
        if example.numbers:
            line["numbers"] = {name: float(number) for name, number in example.numbers.items()}
        if example.drawn:
            line["drawn"] = True
        if example.codes is not None:
            line["codes"] = example.codes.tolist()
        if self._keeps_images(task_name, item, example):
            line |= self._save_images(example, f"{task_name}-{item:05d}")
        self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._lines.flush()
        self.answers[task_name][item] = line

    def examples(self, task_name: str) -> list[Example]:
        """All answers to a task, in the order of its items, as they lie on disk."""
        return [self._example(line) for _, line in sorted(self.answers[task_name].items())]

    def write_scores(self, scores: dict[str, Any], finished: bool) -> None:
        """The scores so far, behind those of tasks of earlier runs. Of one process of several: its own tasks' alone."""
        self.scores |= scores
        if self.shard != WHOLE:
            self._own_scores |= scores
            content = {"finished": False, "settings": self.settings, "tasks": self._own_scores}
            _replace(self._own_scores_path, lambda path: write_json(path, content))
            return
        self._write_all_scores(finished)

    def mark_unfinished(self) -> None:
        """Have an earlier run's scores say that there is more to come."""
        if self.shard[0] == 0 and (self.folder / SCORES).is_file():
            self._write_all_scores(finished=False)

    def put_together(self) -> None:
        """Make one file of all answers, in order, with the images that a single process would have kept; drop the parts."""
        self.close()
        self.shard = WHOLE
        self._put_together()

    @property
    def _own_scores_path(self) -> Path:
        return self.folder / "scores-{}-of-{}.json".format(*self.shard)

    def _put_together(self) -> None:
        lines = []
        for by_item in self.answers.values():
            retention = ImageRetention()
            for item, line in sorted(by_item.items()):
                if not retention.keeps(self._judged(line)):
                    by_item[item] = self._without_images(line)
                lines.append(by_item[item])
        _replace(self.folder / ANSWERS, lambda path: _write_lines(path, lines))
        if self._parts("scores", "json"):
            self._write_all_scores(finished=False)
        for path in (*self._parts("answers", "jsonl"), *self._parts("scores", "json")):
            path.unlink(missing_ok=True)

    def _write_all_scores(self, finished: bool) -> None:
        first = {name: one for name, one in self.scores.items() if name not in self.tasks}
        tasks = first | {name: self.scores[name] for name in self.tasks if name in self.scores}
        content = {"finished": finished, "settings": self.settings, "tasks": tasks}
        _replace(self.folder / SCORES, lambda path: write_json(path, content))

    def _check_is_ours(self) -> None:
        """ValueError: images lie there that no evaluation made, or the drawings of an export."""
        own = [self.folder / name for name in (RECORD, ANSWERS, SCORES)]
        is_ours = any(path.is_file() for path in own) or bool(self._parts("answers", "jsonl"))
        is_export = (self.folder / "manifest.json").is_file()
        if is_export or (not is_ours and (self.folder / IMAGES).is_dir() and any((self.folder / IMAGES).iterdir())):
            raise ValueError(f"{self.folder} holds images that no evaluation made: name another folder (--out).")

    def _problem(self, record: dict[str, Any] | None, described: dict[str, Any]) -> str:
        """What speaks against going on in the folder; nothing where one may."""
        if record is None:
            return "scores of an unknown model, as an older unimm wrote them" if (self.folder / SCORES).is_file() else ""
        for name in COMPARED:
            if record.get(name) != self.settings.get(name):
                old, new = (f"{content.get(name)}"[:12] for content in (record, self.settings))
                return (
                    f"answers of another {name} ({old}, now {new})"
                    if name in COMPARED[:2]
                    else (f"answers with {name}={old}, now {new}")
                )
        for name, task in described.items():
            old = record.get("tasks", {}).get(name, task)
            if old != task:
                sizes = [old.get("num_items"), task["num_items"]]
                told = " ({} items, now {})".format(*sizes) if sizes[0] != sizes[1] else ""
                return f"answers to {name} with other arguments{told}"
        return ""

    def _clear(self) -> None:
        found = [self.folder / name for name in (RECORD, ANSWERS, SCORES)]
        found = [path for path in (*found, *self._parts("answers", "jsonl"), *self._parts("scores", "json")) if path.is_file()]
        if self.shard != WHOLE and found:
            raise ValueError(f"Several processes cannot replace what is in {self.folder}: remove it first.")
        for path in found:
            path.unlink(missing_ok=True)
        if self.shard == WHOLE:
            shutil.rmtree(self.folder / IMAGES, ignore_errors=True)

    def _parts(self, stem: str, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"{stem}-*-of-*.{suffix}"))

    def _is_kept(self, line: Line) -> bool:
        """Whether a line is an answer that is gone on after."""
        if line["task"] not in self._record["tasks"]:
            return False
        task = self.tasks.get(line["task"])
        if task is not None and not isinstance(task, ItemTask) and task.name not in self.scores:
            return False  # it starts again
        return all((self.folder / line[part]).is_file() for part in ("image", "original") if part in line)

    def _keeps_images(self, task_name: str, item: int, example: Example) -> bool:
        """As `ImageRetention` has it, of what is known here: a few more than it keeps, which go when all is put together."""
        if item < PICTURES_KEPT:
            return True
        if example.correct:
            return False
        wrong = self._wrong.setdefault(task_name, [])
        place = bisect.bisect_left(wrong, item)
        wrong.insert(place, item)
        return place < PICTURES_KEPT

    def _save_images(self, example: Example, stem: str) -> dict[str, str]:
        named = {}
        for part in ("image", "original"):
            if (array := getattr(example, part)) is not None:
                name = f"{IMAGES}/{stem}{'' if part == 'image' else '-original'}.png"
                write_image(Image.fromarray(array), self.folder / name, example.provenance if part == "image" else None)
                named[part] = name
        return named

    def _without_images(self, line: Line) -> Line:
        for part in ("image", "original"):
            if part in line:
                (self.folder / line[part]).unlink(missing_ok=True)
        return {name: value for name, value in line.items() if name not in ("image", "original")}

    def _judged(self, line: Line) -> Example:
        """The example of a line, without its images."""
        codes = np.asarray(line["codes"]) if "codes" in line else None
        texts = {name: line[name] for name in TEXTS}
        numbers = line.get("numbers", {})
        return Example(**texts, drawn=line.get("drawn", False), codes=codes, value=line.get("value"), numbers=numbers)

    def _example(self, line: Line) -> Example:
        example = self._judged(line)
        for part in ("image", "original"):
            if part in line:
                with Image.open(self.folder / line[part]) as image:
                    object.__setattr__(example, part, np.asarray(image))
        return example


def recorded_precision(folder: Path) -> str | None:
    """The precision that the answers in a folder were made in: "fp32", "bf16" or "fp16"; None where there are none."""
    return (read_json(folder / RECORD) or {}).get("precision")


def _read_scores(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except FileNotFoundError:  # another process has just put all together
        return None
    return (content or {}).get("tasks")


def _read_lines(path: Path) -> list[Line]:
    """The answers of a file; lines that cannot be read, as a kill leaves the last one, are left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for text in content.split(b"\n")[:-1]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("item"), int) and all(name in line for name in ("task", *TEXTS)):
            lines.append(line)
    return lines


def _write_lines(path: Path, lines: Iterable[Line]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _replace(path: Path, write: Any) -> None:
    """Write a file under a name of this process, and rename it: an interrupt leaves the file of before, not half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    temporary.replace(path)
