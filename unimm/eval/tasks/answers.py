"""Questions and captions: what a model says about an image, for any data set whose records have questions.

An answer is right when it is the expected one, apart from case, width and the punctuation around it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.records import Dataset, Question, Record, Video
from unimm.data.video.choosing import VideoFormat, choose_times
from unimm.eval.task import Example, ItemTask, Judgement
from unimm.inference.claims import plain
from unimm.inference.engine import Engine
from unimm.inference.second_look import Verification
from unimm.runtime.number_checks import whole_number

GAP = 4
"""White pixels between images that are shown side by side."""


@dataclass(frozen=True)
class Answers(ItemTask):
    """Questions of a data set, one of every record in turn, then a second of every record, and so on.

    dataset: records with an image and questions. batch_size: questions the engine is asked at once.
    max_new_tokens: longer answers are cut.
    """

    name: str
    dataset: Dataset
    num_items: int
    batch_size: int = 128
    max_new_tokens: int = 16

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Ask these questions."""
        asked = [self._item(number) for number in items]
        images, questions = [shown(record) for record, _ in asked], [question.text for _, question in asked]
        answers = engine.answer(images, questions, max_new_tokens=self.max_new_tokens)
        for (record, question), answer in zip(asked, answers, strict=True):
            correct = is_same_answer(answer, question.answer)
            yield Example(
                key=record.key,
                prompt=question.text,
                expected=question.answer,
                answer=answer,
                correct=correct,
                reason="" if correct else "another answer",
                category=question.category,
                language=question.language,
                image=as_array(record),
            )

    def _item(self, number: int) -> tuple[Record, Question]:
        """Neighbours are asked different questions, and no record the same one twice while it has others."""
        turn, index = divmod(number, len(self.dataset))
        record = self.dataset[index]
        if not record.questions:
            raise ValueError(f"Record {record.key} has no questions: it cannot be asked about.")
        return record, record.questions[(index + turn) % len(record.questions)]


@dataclass(frozen=True)
class Captions(ItemTask):
    """Captions of a data set's images, each language in turn, compared with the facts by `judge(caption, record)`."""

    name: str
    dataset: Dataset
    judge: Callable[[str, Record], Judgement]
    describe: Callable[[Record], tuple[str, str]]
    """What is in the image: its category, and all that a caption is to name."""
    num_items: int
    languages: tuple[str, ...] = ("en", "zh")
    batch_size: int = 128

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Ask for these captions."""
        captions: dict[int, str] = {}
        records = {number: self.dataset[number % len(self.dataset)] for number in items}
        for turn, language in enumerate(self.languages):
            own = [number for number in items if number % len(self.languages) == turn]
            if own:
                images = [records[number].image for number in own]
                captions |= dict(zip(own, engine.caption(images, language=language), strict=True))
        for number, record in records.items():
            verdict = self.judge(captions[number], record)
            category, expected = self.describe(record)
            yield Example(
                key=record.key,
                prompt="",
                expected=expected,
                answer=verdict.answer,
                correct=verdict.correct,
                reason=verdict.reason,
                category=category,
                language=self.languages[number % len(self.languages)],
                image=as_array(record),
            )


def set_checks(task: ItemTask, votes: int = 1, verify: bool = False, **unknown: Any) -> None:
    """Keeps how a task asks the engine (`unimm.inference.second_look`), where that is not the usual way: its answers are then
    of something else.

    Raises:
        ValueError: votes are fewer than one, verify is neither true nor false, or there is another argument.
    """
    if unknown:
        raise ValueError(f"'{task.name}' does not take {next(iter(unknown))}; votes and verify are the last that it takes.")
    if not isinstance(verify, bool):
        raise ValueError(f"verify is true or false, not {verify!r}.")
    checks: dict[str, Any] = {"votes": votes} if whole_number("votes", votes, 1) > 1 else {}
    if checks or verify:
        vars(task)["checks"] = checks | ({"verify": True} if verify else {})


def find_checks(task: ItemTask, verification: Verification | bool = True) -> dict[str, Any]:
    """The further arguments of the engine's calls for it. verification: how it verifies, where it does."""
    checks = dict(vars(task).get("checks", {}))
    return checks | ({"verify": verification} if "verify" in checks else {})


def is_same_answer(answer: str, expected: str) -> bool:
    """Whether two answers are one, apart from case, width and the punctuation and space around them."""
    return plain(answer) == plain(expected)


def shown(record: Record) -> Any:
    """What of a record is looked at: its image, or a tuple of all of them where it has several."""
    return tuple(one.image for one in record.images) if record.num_images > 1 else record.image


def as_array(record: Record) -> np.ndarray | None:
    """The record's image where it is an array already, or all of several, of a video some frames: what pictures of examples are
    made from."""
    if isinstance(record.image, Video):
        return side_by_side(film_strip(record.image))
    return side_by_side([one.image for one in record.images])


def film_strip(video: Video, num_frames: int = 8, height: int = 64) -> list[np.ndarray]:
    """Frames of a video, small: (height, W, 3) uint8 each. ValueError: they cannot be read."""
    strip = []
    for frame in video.frames(choose_times(video, VideoFormat(num_frames=num_frames))):
        size = max(1, round(frame.shape[1] * height / frame.shape[0])), height
        strip.append(np.asarray(Image.fromarray(frame).resize(size)))
    return strip


def side_by_side(images: list) -> np.ndarray | None:
    """Images in a row with a gap between them; the first one alone where not all are arrays (H, W, 3) of one size; None where
    that is none, either."""
    if not images or not isinstance(images[0], np.ndarray):
        return None
    first = images[0]
    if len(images) == 1 or first.ndim != 3 or not all(getattr(image, "shape", None) == first.shape for image in images):
        return first
    gap = np.full((len(first), GAP, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=1)
