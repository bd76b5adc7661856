"""Reads emoji from drawings: a classifier that was fitted on the originals, placed, blurred and with noise.

1. The ground is the median colour of the picture's border; what differs from it is an object.
2. Of a pair, the picture is parted where there is least between the two halves.
3. The object's box is scaled to 24 x 24 pixels, with the ground as 0, and classified: principal components, then linear
   discriminant analysis (scikit-learn), a class an emoji. Its accuracy on further views stands beside every score.
"""

from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from unimm.data.image import decode_image
from unimm.data.records import ImageLike
from unimm.data.worlds.emoji import EmojiSet
from unimm.data.worlds.emoji_scenes import ALONE, PAIRED, EmojiScene, Placed, choose_background, make_generator, render

SIDE = 64
"""Pictures are read at this size."""

GRID = 24
BORDER = 2
DIFFERENT = 20.0
"""Levels of 255 by which an object differs from the ground, smoothed."""

NUM_COMPONENTS = 96
MIDDLE = (0.38, 0.62)
"""Where the gap between two emoji is looked for."""

NUM_TESTED = 1000
"""Views, at most, that the accuracy is measured on."""

NOTHING = -1
"""What is read where there is no object."""


class EmojiJudge:
    """Which emoji a picture shows.

    Args:
        emoji_set: what it knows.
        seed: of the views it is fitted on.
        num_views: of each emoji.
    """

    def __init__(self, emoji_set: EmojiSet, seed: int = 0, num_views: int = 8) -> None:
        self.emoji_set = emoji_set
        self.seed = seed
        self.num_views = num_views

    def read(self, image: ImageLike) -> int:
        """The number of the one emoji of a picture; NOTHING where it is empty."""
        return self._classify([crop_object(_pixels(image))])[0]

    def read_pair(self, image: ImageLike, relation: str) -> tuple[int, int]:
        """The numbers of two emoji, the first left of, right of, above or below the second; NOTHING for none."""
        one, other = split_pair(_pixels(image), is_beside=relation in ("left", "right"))
        if relation in ("right", "below"):
            one, other = other, one
        first, second = self._classify([one, other])
        return first, second

    @cached_property
    def accuracy(self) -> float:
        """The share of views that it was not fitted on, alone and of a pair's size, that are read right."""
        count = len(self.emoji_set.emoji)
        numbers = np.unique(np.linspace(0, count - 1, min(count, NUM_TESTED)).astype(int)).tolist()
        crops = [
            self._view(number, self.num_views + view)
            for view in range(max(1, min(4, NUM_TESTED // count)))
            for number in numbers
        ]
        read = self._classify(crops)
        return float(np.mean(np.array(read) == np.resize(numbers, len(read))))

    def _classify(self, crops: list[np.ndarray | None]) -> list[int]:
        found = [NOTHING] * len(crops)
        shown = {place: crop.ravel() for place, crop in enumerate(crops) if crop is not None}
        if shown:
            names = self._machine.predict(np.stack(list(shown.values())))
            for place, name in zip(shown, names, strict=True):
                found[place] = int(name)
        return found

    def _view(self, number: int, view: int) -> np.ndarray | None:
        """A crop of an emoji as a drawing might show it."""
        rng = make_generator(self.seed, "train", number * 1000 + view, "judge")
        width = round(SIDE * (ALONE[rng.integers(len(ALONE))] if rng.random() < 0.5 else PAIRED))
        scene = EmojiScene((Placed(number, SIDE // 2, SIDE // 2, width),), choose_background(rng))
        picture = Image.fromarray(render(scene, self.emoji_set.emoji, self.emoji_set.font, SIDE))
        pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.3 * rng.random()))).astype(np.float32)
        pixels = pixels * (1 + 0.08 * (2 * rng.random() - 1)) + 8 * rng.random() * rng.standard_normal(pixels.shape)
        return crop_object(pixels.clip(0, 255).astype(np.uint8))

    @cached_property
    def _machine(self):
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline

        features, labels = [], []
        for number in range(len(self.emoji_set.emoji)):
            views = [crop for view in range(self.num_views) if (crop := self._view(number, view)) is not None]
            features += [crop.ravel() for crop in views]
            labels += [number] * len(views)
        components = min(NUM_COMPONENTS, len(features) - len(self.emoji_set.emoji), len(features[0]))
        reduce = PCA(max(1, components), svd_solver="randomized", random_state=self.seed)
        return make_pipeline(reduce, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)).fit(np.stack(features), labels)


def crop_object(pixels: np.ndarray) -> np.ndarray | None:
    """What differs from the ground, (24, 24, 3) float32 about 0; None where nothing does. pixels: (H, W, 3) uint8."""
    ground, mask = find_object(pixels)
    return _crop(pixels, mask, ground)


def split_pair(pixels: np.ndarray, is_beside: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The two objects of a picture as `crop_object` gives them: left and right, or top and bottom."""
    ground, mask = find_object(pixels)
    along = mask.sum(0 if is_beside else 1)
    low, high = (round(share * len(along)) for share in MIDDLE)
    least = np.flatnonzero(along[low:high] == along[low:high].min())
    at = low + int(least[len(least) // 2])
    place = np.arange(len(along)) < at
    half = place[None, :] if is_beside else place[:, None]
    return _crop(pixels, mask & half, ground), _crop(pixels, mask & ~half, ground)


def find_object(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour of the ground (3,) and where something else is, (H, W) bool."""
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    ground = np.median(pixels[~inner], axis=0)
    difference = np.abs(pixels.astype(np.float32) - ground).max(-1)
    return ground, ndimage.gaussian_filter(difference, 0.7) > DIFFERENT


def _crop(pixels: np.ndarray, mask: np.ndarray, ground: np.ndarray) -> np.ndarray | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    longest = max(bottom - top, right - left)
    square = np.empty((longest, longest, 3), dtype=np.float32)
    square[:] = ground
    y, x = (longest - (bottom - top)) // 2, (longest - (right - left)) // 2
    square[y : y + bottom - top, x : x + right - left] = pixels[top:bottom, left:right]
    picture = Image.fromarray(square.clip(0, 255).astype(np.uint8)).resize((GRID, GRID), Image.Resampling.BILINEAR)
    return (np.asarray(picture).astype(np.float32) - ground) / 255


def _pixels(image: ImageLike) -> np.ndarray:
    picture = decode_image(image)
    return np.asarray(picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
