"""A question about one image or several, with examples before it (in-context learning), as the turns of a conversation.

Each example is a turn that shows its image and asks the same question, and the assistant's answer to it: the sequence that the
view `unimm.data.FewShot` trains, as in Flamingo (arXiv 2204.14198).
"""

from dataclasses import dataclass, replace
from typing import Any

from unimm.data.image_forms import read_once
from unimm.data.records import ImageLike
from unimm.data.template import ImageSegments, Template, Turn
from unimm.data.video.choosing import Frames
from unimm.inference.input_validation import check_text
from unimm.runtime.number_checks import shorten

Shown = ImageLike | tuple[ImageLike, ...]
"""An image, or a tuple of several that are looked at together."""

Example = tuple[Shown, str]
"""What is shown, and the answer to the question about it."""


@dataclass(frozen=True)
class ImageQuestion:
    """A question and the images that it is about, unopened; before: the turns of its examples."""

    images: tuple[ImageSegments | Frames, ...]
    question: str
    before: tuple[Turn, ...] = ()

    @classmethod
    def read(
        cls, template: Template, shown: Shown, question: str, examples: list[Example], max_positions: int
    ) -> "ImageQuestion":
        """Of what a user gives.

        Raises:
            ValueError: nothing is shown, or the images alone take more positions than there are.
        """
        check_num_images(sum(map(_count, (shown, *(one for one, _ in examples)))), template, max_positions)
        before: list[Turn] = []
        for one, answer in examples:
            before += [Turn("user", (*_look(template, one), question)), Turn("assistant", (answer,), learn=False)]
        return cls(_look(template, shown), question, tuple(before))

    def opened(self) -> "ImageQuestion":
        """The same, its images read, so that all that is asked about them shares one copy. ValueError: one cannot be read."""
        before = (replace(turn, content=tuple(map(_open, turn.content))) for turn in self.before)
        return ImageQuestion(tuple(map(_open, self.images)), self.question, tuple(before))

    def ask(self, question: str) -> Turn:
        """A turn that asks something about the same images."""
        return Turn("user", (*self.images, question))

    def turns(self) -> list[Turn]:
        """The examples, then the question."""
        return [*self.before, self.ask(self.question)]


def read_examples(examples: Any, num_questions: int) -> list[list[Example]]:
    """The examples of each question: the same pairs for all of them, or a list of pairs for each.

    Raises:
        ValueError: an example is no pair of an image and an answer, or there are lists for more or fewer questions.
    """
    if examples is None:
        return [[]] * num_questions
    if not isinstance(examples, list):
        raise ValueError(f"examples are a list of pairs (image, answer), not {type(examples).__name__}.")
    if examples and all(isinstance(one, list) for one in examples):
        if len(examples) != num_questions:
            raise ValueError(f"There are examples for {len(examples)} questions, and {num_questions} are asked.")
        return [[_read_example(one) for one in own] for own in examples]
    return [[_read_example(one) for one in examples]] * num_questions


def check_num_images(num_images: int, template: Template, max_positions: int) -> None:
    """Raises ValueError where so many images alone take more positions than the model has; before any of them is read."""
    each = 0 if template.prompt_format.sees == "codes" else template.num_positions
    if num_images * each > max_positions:
        raise ValueError(f"{num_images} images take {num_images * each} positions, and there are {max_positions}: show fewer.")


def _read_example(example: Any) -> Example:
    if not isinstance(example, tuple) or len(example) != 2:
        raise ValueError(f"An example is a pair (image, answer), not {shorten(example)}.")
    shown, answer = example
    check_text(answer, "answer of an example")
    images = tuple(read_once(one) for one in shown) if isinstance(shown, tuple) else read_once(shown)
    return images, answer


def _count(shown: Shown) -> int:
    if not isinstance(shown, tuple):
        return 1
    if not shown:
        raise ValueError("A tuple of images is empty: show at least one.")
    return len(shown)


def _open(part: Any) -> Any:
    """A part of a turn; a text as it is."""
    if isinstance(part, tuple):
        return tuple(segment.opened() for segment in part)
    return part.opened() if isinstance(part, Frames) else part


def _look(template: Template, shown: Shown) -> tuple[ImageSegments | Frames, ...]:
    images = shown if isinstance(shown, tuple) else (shown,)
    return tuple(template.show(read_once(image)) for image in images)
