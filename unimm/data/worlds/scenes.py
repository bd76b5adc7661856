"""Scenes of drawn shapes: 0-4 coloured shapes on a dark background, 64x64 px, any one made from (seed, split, index).

A scene is a value (`Scene`, a tuple of `Shape`); `make_scene` draws one from a counter-based generator, so any worker can
make any item; `render` turns it into pixels by blending precomputed antialiased masks. Coordinates are pixels of the
centre of a shape's box, x to the right and y downwards. The idea of a drawn world with held-out attribute pairs is
CLEVR's (Johnson et al. 2017, CoGenT).
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

SIDE = 64
"""Height and width of a scene in pixels."""

SIZES = {"small": 6.5, "large": 10.5}
"""Half the width of a shape's box in pixels: 13 and 21 px across, odd so that a centre falls on a pixel."""

COLOURS = {
    "red": (225, 35, 40),
    "green": (50, 185, 70),
    "blue": (45, 85, 240),
    "yellow": (255, 230, 30),
    "purple": (165, 60, 215),
    "orange": (255, 135, 0),
    "cyan": (50, 220, 230),
    "white": (245, 245, 245),
}
"""The eight colours as RGB, at least 95 apart in Euclidean distance."""

FORMS = ("circle", "square", "triangle", "cross")

HELD_OUT_PAIRS = (("orange", "circle"), ("purple", "square"), ("green", "triangle"), ("yellow", "cross"))
"""(colour, form) pairs that only the `held_out` split shows: each form once, four different colours."""

TRAINING_PAIRS = tuple((colour, form) for colour in COLOURS for form in FORMS if (colour, form) not in HELD_OUT_PAIRS)

SPLITS = ("train", "validation", "test", "held_out")

RELATIONS = ("left", "right", "above", "below")

PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""The thirds of a picture, row by row."""

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

NUM_OBJECTS_WEIGHTS = (0.03, 0.32, 0.32, 0.20, 0.13)
"""How often a scene has 0, 1, 2, 3, 4 objects."""

ALIKE_WEIGHTS = (0.60, 0.25, 0.15)
"""How often several objects are independent, share colour and form, share the form: chance alone shows few to count."""

GAP = 3
"""Pixels between the boxes of two shapes, so that soft edges never touch."""

BORDER = 1
"""Pixels between a box and the edge of the image."""

CLEAR_RATIO = 1.5
"""A relation is stated where its axis separates the centres at least this many times as far as the other axis."""

PURPOSES = ("scene", "captions", "prompts", "questions", "text", "drawing", "colours", "phrases")


@dataclass(frozen=True, order=True)
class Shape:
    """One object: its size, colour and form by name, the centre (x, y) of its box in pixels."""

    size: str
    colour: str
    form: str
    x: int
    y: int

    @property
    def radius(self) -> float:
        """Half the width of the box in pixels."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """What is in an image: the shapes, the RGB of the background, width and height in pixels."""

    objects: tuple[Shape, ...]
    background: tuple[int, int, int] = (22, 22, 26)
    size: tuple[int, int] = (SIDE, SIDE)


def make_generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one item: Philox keyed by (seed, split), counting from (index, purpose).

    Raises ValueError for an unknown split or a negative seed or index.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    # The two low words of the counter are the stream's own to count with, so no two items can ever overlap.
    counter = np.array([0, 0, index, PURPOSES.index(purpose)], dtype=np.uint64)
    key = np.array([seed, SPLITS.index(split)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def choose(rng: np.random.Generator, options):
    """One of the options, all equally likely. Only `rng.random` is asked: its stream is the same in every numpy."""
    return options[int(rng.random() * len(options))]


def choose_weighted(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    """An index, with probability proportional to its weight."""
    return int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))


def shuffle(rng: np.random.Generator, items) -> list:
    """The items in random order, as a new list."""
    return [items[i] for i in np.argsort(rng.random(len(items)), kind="stable")]


def make_scene(
    seed: int,
    split: str,
    index: int,
    num_objects: tuple[int, ...] = (),
    alike: tuple[float, ...] = ALIKE_WEIGHTS,
    size: tuple[int, int] = (SIDE, SIDE),
) -> Scene:
    """The scene of one item. Splits are disjoint streams; `held_out` scenes show at least one held-out pair.

    num_objects: so many, one of these; none: as it comes. Not for "held_out".
    alike: weights as ALIKE_WEIGHTS; none: no two of one colour and form (with num_objects alone).
    size: width and height.
    """
    rng = make_generator(seed, split, index, "scene")
    if num_objects and not alike:
        pairs = shuffle(rng, TRAINING_PAIRS)[: choose(rng, num_objects)]
        looks = [(choose(rng, tuple(SIZES)), colour, form) for colour, form in pairs]
    else:
        drawn = choose(rng, num_objects) if num_objects else choose_weighted(rng, NUM_OBJECTS_WEIGHTS)
        looks = choose_looks(rng, max(drawn, 1) if split == "held_out" else drawn, split == "held_out", alike)
    objects = place(rng, looks, size)
    tone = 12 + 20 * rng.random()
    red, green, blue = (round(tone + 8 * rng.random()) for _ in range(3))
    return Scene(objects, (red, green, blue), size)


def recolour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with about half of its objects in colours chosen anew. No pair is shown that is held out."""

    def other(item: Shape) -> Shape:
        return replace(item, colour=choose(rng, [colour for colour, form in TRAINING_PAIRS if form == item.form]))

    return replace(scene, objects=tuple(other(item) if rng.random() < 0.5 else item for item in scene.objects))


def choose_looks(
    rng: np.random.Generator, num_objects: int, held_out: bool, alike_weights: tuple[float, ...]
) -> list[tuple[str, str, str]]:
    """(size, colour, form) of each object; with `held_out` one of them, or all that look alike, is a held-out pair."""
    pairs = [choose(rng, TRAINING_PAIRS) for _ in range(num_objects)]
    sizes = [choose(rng, tuple(SIZES)) for _ in range(num_objects)]
    if held_out:
        pairs[0] = choose(rng, HELD_OUT_PAIRS)
    if num_objects > 1:
        alike = choose_weighted(rng, alike_weights)
        if alike == 1:
            pairs = [pairs[0]] * num_objects
            if rng.random() < 0.5:
                sizes = [sizes[0]] * num_objects
        elif alike == 2:
            same = [pair for pair in TRAINING_PAIRS if pair[1] == pairs[0][1]]
            pairs = [pairs[0]] + [choose(rng, same) for _ in pairs[1:]]
    looks = [(size, colour, form) for size, (colour, form) in zip(sizes, pairs, strict=True)]
    return shuffle(rng, looks)


def place(
    rng: np.random.Generator, looks: list[tuple[str, str, str]], size: tuple[int, int] = (SIDE, SIDE)
) -> tuple[Shape, ...]:
    """Shapes at random integer positions, boxes at least GAP px apart; starts again where the last one finds no room."""
    while True:
        objects: list[Shape] = []
        for scale, colour, form in looks:
            free = find_free_centres(objects, SIZES[scale], size)
            if not len(free):
                break
            y, x = divmod(int(choose(rng, free)), size[0])
            objects.append(Shape(scale, colour, form, x, y))
        else:
            return tuple(objects)


def find_free_centres(objects: list[Shape], radius: float, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Flat indices (y * width + x) of the centres where a box of this radius touches neither a shape nor the border."""
    width, height = size
    free = np.zeros((height, width), dtype=bool)
    edge = int(radius + 0.5) + BORDER - 1
    free[edge : height - edge, edge : width - edge] = True
    for other in objects:
        reach = int(radius + other.radius) + GAP - 1
        top, left = max(other.y - reach, 0), max(other.x - reach, 0)
        free[top : other.y + reach + 1, left : other.x + reach + 1] = False
    return np.flatnonzero(free)


def find_relation(a: Shape, b: Shape) -> str | None:
    """Where a is, seen from b ("left", "right", "above", "below"), or None where two answers could be defended."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= CLEAR_RATIO * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= CLEAR_RATIO * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def find_place(item: Shape) -> str:
    """The third of the picture, across and down, that an object's centre lies in: one of PLACES."""
    return PLACES[3 * item.y // SIDE][3 * item.x // SIDE]


@cache
def make_mask(size: str, form: str) -> np.ndarray:
    """How much of each pixel a shape covers, (2 r + 1, 2 r + 1) float32 in [0, 1] with r = int(radius): 8x8 samples."""
    samples, radius = 8, SIZES[size]
    width = 2 * int(radius) + 1
    axis = (np.arange(width * samples) + 0.5) / samples - width / 2
    x, y = axis[None, :] / radius, axis[:, None] / radius
    if form == "circle":
        inside = x**2 + y**2 <= 1
    elif form == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.9
    elif form == "triangle":
        inside = (abs(x) <= (y + 1) * 0.5) & (y <= 0.95)
    elif form == "cross":
        inside = (np.minimum(abs(x), abs(y)) <= 0.36) & (np.maximum(abs(x), abs(y)) <= 1)
    else:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
    return inside.reshape(width, samples, width, samples).mean((1, 3), dtype=np.float32)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, (H, W, 3) uint8 RGB with antialiased edges."""
    image = np.empty((scene.size[1], scene.size[0], 3), dtype=np.float32)
    image[:] = scene.background
    for item in scene.objects:
        mask = make_mask(item.size, item.form)[..., None]
        reach = int(item.radius)
        window = image[item.y - reach : item.y + reach + 1, item.x - reach : item.x + reach + 1]
        window += mask * (np.array(COLOURS[item.colour], dtype=np.float32) - window)
    return np.rint(image).astype(np.uint8)
