"""Reads an image of drawn shapes back into objects, with nothing learned: components, then template matching.

1. The background is the median colour; how much of a palette colour covers a pixel is its projection on the line from
   the background to that colour, so soft edges read as partial cover and not as other colours.
2. Pixels more than half covered fall into connected components; tiny ones are blotches and are ignored.
3. A component's cover is compared with the masks of all sizes and forms at all places nearby; the nearest one names it.
   What no mask resembles is reported with the form "unclear", so a smudge is never passed over.
"""

from functools import cache

import numpy as np
from scipy import ndimage

from unimm.data.worlds.scenes import COLOURS, FORMS, SIDE, SIZES, Scene, Shape, make_mask

UNCLEAR = "unclear"
"""The form of something large enough to be an object that looks like none of the forms."""

MIN_AREA = 35
"""Pixels; the smallest shape, a small triangle, covers 80. Anything smaller than this is a blotch."""

MIN_MATCH = 0.8
"""The lowest agreement (1 is perfect) between a component and a mask at which the mask's name is believed."""

GOOD_MATCH = 0.93
"""Below this a component may be two objects that touch: it is tried in parts, a colour each."""

MAX_SHIFT = 3
"""Pixels around the middle of a component's box where its centre is looked for."""

REACH = 14
"""Half a template in pixels: a large shape at the largest shift."""

PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)


@cache
def make_templates() -> tuple[list[tuple[str, str, int, int]], np.ndarray, np.ndarray]:
    """Masks of all sizes and forms at all shifts: names (size, form, dx, dy), masks (N, 29 * 29), squared norms (N)."""
    names, masks = [], []
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    for size in SIZES:
        for form in FORMS:
            mask = make_mask(size, form)
            reach = mask.shape[0] // 2
            for dx in shifts:
                for dy in shifts:
                    canvas = np.zeros((2 * REACH + 1, 2 * REACH + 1), dtype=np.float32)
                    top, left = REACH + dy - reach, REACH + dx - reach
                    canvas[top : top + len(mask), left : left + len(mask)] = mask
                    names.append((size, form, dx, dy))
                    masks.append(canvas.ravel())
    stacked = np.stack(masks)
    return names, stacked, (stacked**2).sum(1)


def measure_cover(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each palette colour covers each pixel, (8, 64, 64) in [0, 1], and the index of the likeliest (64, 64)."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    background = np.median(pixels, axis=0)
    offsets, lines = pixels - background, PALETTE - background
    lengths = np.maximum((lines**2).sum(1, keepdims=True), 1)  # the background may itself be a palette colour
    cover = lines @ offsets.T / lengths
    # The distance from the line; a colour on the far side of the background is no candidate.
    distance = (offsets**2).sum(1) - np.maximum(cover, 0) ** 2 * lengths
    likeliest = distance.argmin(0)
    shape = image.shape[:2]
    return cover.clip(0, 1).reshape(-1, *shape), likeliest.reshape(shape)


def match(image: np.ndarray, cover: np.ndarray, component: np.ndarray) -> tuple[float, Shape]:
    """The shape a component (a boolean map) looks most like, and how well the two agree."""
    likeliest_cover = cover.max(0)
    core = component & (likeliest_cover > 0.8)
    colour_value = np.median(image[core if core.any() else component], axis=0)
    colour = int(((PALETTE - colour_value) ** 2).sum(1).argmin())
    # Two pixels around the component keep its soft edge, and keep its neighbours out.
    own = ndimage.binary_dilation(component, iterations=2)
    rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
    y, x = int(rows[0] + rows[-1] + 1) // 2, int(columns[0] + columns[-1] + 1) // 2
    padded = np.pad(cover[colour] * own, REACH)
    window = padded[y : y + 2 * REACH + 1, x : x + 2 * REACH + 1].ravel()
    names, masks, norms = make_templates()
    energy = float(window @ window)
    agreement = 1 - (energy - 2 * masks @ window + norms) / (energy + norms)
    best = int(agreement.argmax())
    size, form, dx, dy = names[best]
    found = Shape(size, list(COLOURS)[colour], form if agreement[best] >= MIN_MATCH else UNCLEAR, x + dx, y + dy)
    return float(agreement[best]), found


def find_components(foreground: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a boolean map that are large enough to count, as boolean maps."""
    labels = np.zeros(foreground.shape, dtype=np.int32)
    ndimage.label(foreground, output=labels)
    areas = np.bincount(labels.ravel())
    return [labels == n for n in range(1, len(areas)) if areas[n] >= MIN_AREA]


def read_objects(image: np.ndarray) -> list[Shape]:
    """The objects of an image (H, W, 3) uint8, from left to right; ValueError where its short side has not 64 pixels."""
    if image.ndim != 3 or min(image.shape[:2]) != SIDE:
        raise ValueError(f"the checker reads images whose short side is {SIDE}, got {image.shape}: resize it first")
    cover, likeliest = measure_cover(image)
    own_cover = np.take_along_axis(cover, likeliest[None], 0)[0]
    found: list[Shape] = []
    for component in find_components(own_cover > 0.5):
        agreement, shape = match(image, cover, component)
        if agreement < GOOD_MATCH:
            parts = [part for n in range(len(PALETTE)) for part in find_components(component & (likeliest == n))]
            matches = [match(image, cover, part) for part in parts]
            if len(parts) > 1 and min(score for score, _ in matches) > max(agreement, MIN_MATCH):
                found.extend(part for _, part in matches)
                continue
        found.append(shape)
    return sorted(found, key=lambda item: (item.x, item.y))


def scene_is_exact(found: list[Shape], scene: Scene, tolerance: float = 2.0) -> bool:
    """Whether the objects found are the scene's: the same sizes, colours and forms, centres within `tolerance` px."""
    left = list(found)
    for item in scene.objects:
        fitting = [
            other
            for other in left
            if (other.size, other.colour, other.form) == (item.size, item.colour, item.form)
            and max(abs(other.x - item.x), abs(other.y - item.y)) <= tolerance
        ]
        if not fitting:
            return False
        # Shapes never overlap, so at most one of a look can lie this near.
        left.remove(fitting[0])
    return not left
