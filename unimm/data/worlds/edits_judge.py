"""Judges what was made of a drawn scene by an instruction: whether the edit is made, and whether the rest is as it was.

Both are read by the checker, so neither rests on a learned model, and each counts without the other: a picture that is left as
it was keeps the rest and makes no edit; another picture altogether may make it and keep nothing.
"""

from dataclasses import dataclass

import numpy as np

from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.edits_scenes import KEEP, EditedScene
from unimm.data.worlds.scenes import Shape, find_place
from unimm.data.worlds.shapes_language import describe

TOLERANCE = 3.0
"""Pixels that a centre may be off: a third of a code's side more than the image tokenizer moves things itself."""


@dataclass(frozen=True)
class EditVerdict:
    """Whether the edit is made, whether the rest is preserved, why not, and the objects that the checker found."""

    made: bool
    preserved: bool
    reason: str
    found: tuple[Shape, ...]


def judge_edit(image: np.ndarray, edited: EditedScene) -> EditVerdict:
    """What became of a scene, in an image (64, 64, 3) uint8.

    Made: what the instruction asks for is there, where it was or where it is to go, and what was to change is no longer there
    as it was. Preserved: each object that the instruction does not speak of is there, with its look, where it was, and there
    is at most one object beside them. Where all is to be kept both say that nothing changed.
    """
    found = read_objects(image)
    left = list(found)
    missing = [item for item in edited.rest if not _take(item, left)]
    is_kept = edited.edit.kind == KEEP
    too_many = len(left) if is_kept else len(left) - 1
    preserved = not missing and too_many <= 0
    made = preserved if is_kept else _is_made(found, edited)
    reasons = [] if made else [f"not made: {edited.edit.kind}"]
    reasons += [f"{len(missing)} lost or changed"] if missing else []
    reasons += [f"{too_many} too many"] if not missing and too_many > 0 else []
    return EditVerdict(made, preserved, "; ".join(reasons), tuple(found))


def _is_made(found: list[Shape], edited: EditedScene) -> bool:
    edit = edited.edit
    if edit.before is not None and any(_is_it(edit.before, other) for other in found):
        return False
    if edit.after is None:
        return True
    if not edit.place:
        return any(_is_it(edit.after, other) for other in found)
    look = describe(edit.after)
    rest = [item for item in edited.rest if describe(item) == look and find_place(item) == edit.place]
    return sum(describe(other) == look and find_place(other) == edit.place for other in found) > len(rest)


def _is_it(item: Shape, other: Shape) -> bool:
    """Whether an object that was found is this one."""
    return describe(item) == describe(other) and max(abs(item.x - other.x), abs(item.y - other.y)) <= TOLERANCE


def _take(item: Shape, left: list[Shape]) -> bool:
    """Take an object from those that are left; whether it was there."""
    fitting = [other for other in left if _is_it(item, other)]
    if fitting:
        left.remove(fitting[0])
    return bool(fitting)
