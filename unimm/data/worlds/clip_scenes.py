"""Clips of moving shapes: what happens in one, made from (seed, split, index), and its frames, 64 x 64 px.

    direction   one shape moves in one of eight directions, sometimes beside another that stands still
    order       two shapes appear, disappear or change their colour, one before the other
    count       a shape blinks so many times
    passing     so many shapes of one look pass, one after the other
    speed       two shapes move, one at least twice as fast

The frame in the middle never tells what is asked: the moving shape is then anywhere, whatever its direction or speed, of two
events none or both have happened, nothing blinks, and one shape is passing. No clip shows a pair of colour and form that is
held out of the shapes world.
"""

from dataclasses import dataclass, replace

import numpy as np

from unimm.data.worlds.scenes import (
    BORDER,
    SIDE,
    SIZES,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    make_generator,
    render,
    shuffle,
)

KINDS = ("direction", "order", "count", "passing", "speed")
"""In turn: record i of a world of all of them is of kind i modulo 5."""

DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
"""As (x, y), y downwards."""

EVENTS = ("appear", "disappear", "change colour")

FRAME_RATE = 2.0
"""Frames a second."""

MIN_FRAMES, MAX_FRAMES = 8, 16

TRAVEL = (20, 28)
"""Pixels that a shape moves from the first frame to the last, along each axis that it moves along."""

SLOW, FAST = (8, 12), (26, 32)
"""The same, of two shapes that are compared."""


@dataclass(frozen=True)
class ClipFacts:
    """What happens in a clip. shapes: those that are asked about, as they look at first; frames: the scene of each frame.

    answer: the direction; the number of the shape (0, 1) that is first or faster; or how many times, how many.
    event: of "order", one of EVENTS.
    """

    kind: str
    shapes: tuple[Shape, ...]
    frames: tuple[Scene, ...]
    answer: str | int
    event: str = ""

    def render(self, number: int) -> np.ndarray:
        """Frame `number`, (64, 64, 3) uint8."""
        return render(self.frames[number])


def make_clip(seed: int, split: str, index: int, num_frames: int, kind: str) -> ClipFacts:
    """The clip of an item."""
    rng = make_generator(seed, split, index, "scene")
    make = {"direction": _direction, "order": _order, "count": _count, "passing": _passing, "speed": _speed}[kind]
    tone = 12 + 20 * rng.random()
    red, green, blue = (round(tone + 8 * rng.random()) for _ in range(3))
    return make(rng, num_frames, (red, green, blue))


Background = tuple[int, int, int]


def _looks(rng: np.random.Generator, count: int) -> list[Shape]:
    """Shapes whose colours and forms all differ, at no place yet."""
    found: list[tuple[str, str]] = []
    for pair in shuffle(rng, TRAINING_PAIRS):
        if all(pair[0] != colour and pair[1] != form for colour, form in found):
            found.append(pair)
    return [Shape(choose(rng, tuple(SIZES)), colour, form, 0, 0) for colour, form in found[:count]]


def _span(size: str, travel: int = 0) -> tuple[int, int]:
    """The first and last coordinate at which a shape that moves by `travel` to either side stays inside."""
    edge = BORDER + int(SIZES[size] + 0.5) + -(-travel // 2)
    return edge, SIDE - 1 - edge


def _anywhere(rng: np.random.Generator, span: tuple[int, int]) -> int:
    return span[0] + int(rng.random() * (span[1] - span[0] + 1))


def _steps(num_frames: int, travel: int) -> list[int]:
    """How far a shape is from its place in the middle frame, in each frame."""
    middle = num_frames // 2
    return [round(travel * (number - middle) / (num_frames - 1)) for number in range(num_frames)]


def _moved(shape: Shape, direction: tuple[int, int], step: int) -> Shape:
    return replace(shape, x=shape.x + direction[0] * step, y=shape.y + direction[1] * step)


def _direction(rng: np.random.Generator, num_frames: int, background: Background) -> ClipFacts:
    shape, still = _looks(rng, 2)
    name = choose(rng, tuple(DIRECTIONS))
    travel = TRAVEL[0] + int(rng.random() * (TRAVEL[1] - TRAVEL[0] + 1))
    span = _span(shape.size, travel + 4)
    shape = replace(shape, x=_anywhere(rng, span), y=_anywhere(rng, span))
    # In a corner, out of most paths; where they meet, the mover passes before it, since it is drawn first.
    still = replace(still, size="small", x=choose(rng, (9, SIDE - 10)), y=choose(rng, (9, SIDE - 10)))
    others = (still,) if rng.random() < 0.5 else ()
    moved = [_moved(shape, DIRECTIONS[name], step) for step in _steps(num_frames, travel)]
    frames = tuple(Scene((*others, one), background) for one in moved)
    return ClipFacts("direction", (shape,), frames, name)


def _speed(rng: np.random.Generator, num_frames: int, background: Background) -> ClipFacts:
    shapes = _looks(rng, 2)
    answer = choose(rng, (0, 1))
    is_across = rng.random() < 0.5
    lanes = shuffle(rng, (16, SIDE - 17))  # either may be the upper, or the left one
    placed, ways, steps = [], [], []
    for number, shape in enumerate(shapes):
        low, high = FAST if number == answer else SLOW
        travel = low + int(rng.random() * (high - low + 1))
        along, lane = _anywhere(rng, _span(shape.size, FAST[1] + 2)), lanes[number]
        placed.append(replace(shape, x=along, y=lane) if is_across else replace(shape, x=lane, y=along))
        sign = choose(rng, (-1, 1))
        ways.append((sign, 0) if is_across else (0, sign))
        steps.append(_steps(num_frames, travel))
    scenes = []
    for frame in range(num_frames):
        moved = tuple(_moved(shape, way, own[frame]) for shape, way, own in zip(placed, ways, steps, strict=True))
        scenes.append(Scene(moved, background))
    return ClipFacts("speed", tuple(placed), tuple(scenes), answer)


def _order(rng: np.random.Generator, num_frames: int, background: Background) -> ClipFacts:
    event, answer = choose(rng, EVENTS), choose(rng, (0, 1))
    # Side by side or one above the other: each has a half of its own.
    halves = shuffle(rng, ((18, 30), (46, 34)) if rng.random() < 0.5 else ((30, 18), (34, 46)))
    shapes = [
        replace(shape, x=x + _jitter(rng, 3), y=y + _jitter(rng, 3))
        for shape, (x, y) in zip(_looks(rng, 2), halves, strict=True)
    ]
    after = [_recoloured(rng, shape, shapes) for shape in shapes]
    middle = num_frames // 2
    # Both before the middle frame, or both after it.
    room = range(1, middle + 1) if rng.random() < 0.5 else range(middle + 1, num_frames)
    first, second = sorted(shuffle(rng, room)[:2])
    when = (first, second) if answer == 0 else (second, first)
    scenes = []
    for frame in range(num_frames):
        there = []
        for shape, other, at in zip(shapes, after, when, strict=True):
            has_happened = frame >= at
            if event == "change colour":
                there.append(other if has_happened else shape)
            elif (event == "appear") == has_happened:
                there.append(shape)
        scenes.append(Scene(tuple(there), background))
    return ClipFacts("order", tuple(shapes), tuple(scenes), answer, event)


def _recoloured(rng: np.random.Generator, shape: Shape, shapes: list[Shape]) -> Shape:
    """In a colour that neither has."""
    taken = {one.colour for one in shapes}
    colours = [colour for colour, form in TRAINING_PAIRS if form == shape.form and colour not in taken]
    return replace(shape, colour=choose(rng, colours))


def _count(rng: np.random.Generator, num_frames: int, background: Background) -> ClipFacts:
    (shape,) = _looks(rng, 1)
    span = _span(shape.size)
    shape = replace(shape, x=_anywhere(rng, span), y=_anywhere(rng, span))
    answer = choose(rng, range(1, most_blinks(num_frames) + 1))
    dark: set[int] = set()
    while len(dark) < answer:  # never two neighbours, never in the middle frame, the first or the last
        dark = set()
        for frame in shuffle(rng, range(1, num_frames - 1)):
            if len(dark) < answer and frame != num_frames // 2 and not {frame - 1, frame + 1} & dark:
                dark.add(frame)
    scenes = tuple(Scene(() if frame in dark else (shape,), background) for frame in range(num_frames))
    return ClipFacts("count", (shape,), scenes, answer)


def most_blinks(num_frames: int) -> int:
    """How often a shape blinks at most in so many frames."""
    return 3 if num_frames < 12 else 4


def _passing(rng: np.random.Generator, num_frames: int, background: Background) -> ClipFacts:
    (shape,) = _looks(rng, 1)
    slots = 4
    length, middle = num_frames // slots, num_frames // 2
    answer = choose(rng, range(1, slots + 1))
    always = middle // length if middle // length < slots else slots - 1
    chosen = {always, *shuffle(rng, [slot for slot in range(slots) if slot != always])[: answer - 1]}
    sign, span = choose(rng, (-1, 1)), _span(shape.size)
    is_across, lane = rng.random() < 0.5, _anywhere(rng, span)
    scenes = []
    for frame in range(num_frames):
        slot, place = min(frame // length, slots - 1), frame % length
        along = SIDE // 2 + sign * round(SIDE * ((place + 0.5) / length - 0.5) * 0.6)
        one = replace(shape, x=along, y=lane) if is_across else replace(shape, x=lane, y=along)
        scenes.append(Scene((one,) if slot in chosen and frame < slots * length else (), background))
    return ClipFacts("passing", (shape,), tuple(scenes), answer)


def _jitter(rng: np.random.Generator, most: int) -> int:
    return int(rng.random() * (2 * most + 1)) - most
