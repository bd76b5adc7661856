"""The world of handwritten digits: scikit-learn's 1,797 real 8x8 scans, drawn smoothly at 64x64, and their judge.

The scans ship inside scikit-learn (`load_digits`, from Alpaydin and Kaynak's Optical Recognition of Handwritten Digits,
UCI 1998), so nothing is downloaded. One half of each digit is for testing and never augmented; the split is fixed, no
seed changes it, so that scores of all runs are about the same scans. A drawing is judged by a support vector machine
that was fitted on the other half and looks at 8x8 values, as the scans have them.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image

from unimm.data.image import decode_image
from unimm.data.records import ImageLike, Question, Record, Text
from unimm.data.worlds.digits_language import write_captions, write_prompts, write_questions, write_text
from unimm.runtime.number_checks import check_whole

SIDE = 64
"""Height and width of an image in pixels."""

CELL = 6
"""Pixels across one value of an 8x8 scan: a digit fills the middle 48 pixels, so that it can move and turn."""

BACKGROUND, STROKE = 20, 235
"""Grey levels of an empty and of a full value."""

SPLITS = ("train", "validation", "test")

VALIDATION_SCANS = 10
"""Scans a digit that are taken from the training half for validation."""

_MARGIN = (SIDE - 8 * CELL) // 2
_PURPOSES = ("strokes", "captions", "prompts", "questions", "text", "split", "judge")


@dataclass(frozen=True)
class DigitFacts:
    """What the judge knows: the digit 0..9, and which of scikit-learn's scans it is."""

    digit: int
    scan: int


class DigitsWorld:
    """Handwritten digits as records: image (64, 64, 3) uint8, captions, prompts and questions in English and Chinese.

    Args:
        split: "train" (796 scans), "validation" (100) or "test" (901).
        num_records: one per scan if None; for training it may be more, further ones are augmented views of the scans.
        seed: of the augmentation and the wordings; record `index` depends on (seed, split, index) alone.
        augment: whether training views beyond the first are shifted, turned and scaled a little.

    Raises ValueError for an unknown split, or more records than a split has views; IndexError outside the records.
    """

    def __init__(self, split: str = "train", num_records: int | None = None, seed: int = 0, augment: bool = True):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.scans = split_scans()[split]
        self.num_records = len(self.scans) if num_records is None else num_records
        if self.num_records > len(self.scans) and (split != "train" or not augment):
            raise ValueError(f"{split} has {len(self.scans)} scans without augmentation: ask for at most so many records")
        self.split = split
        self.seed = seed
        check_whole(self, 0, "num_records", "seed")

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        scan = int(self.scans[index % len(self.scans)])
        return DigitsRecord(self.seed, self.split, index, scan, is_scan=index < len(self.scans))


class DigitsRecord(Record):
    """One view of a scan. Every part has a generator of its own, so it is made when it is first asked for, and always the same.

    is_scan: as it was scanned, not moved and turned.
    """

    def __init__(self, seed: int, split: str, index: int, scan: int, is_scan: bool) -> None:
        facts = DigitFacts(int(load_scans()[1][scan]), scan)
        vars(self).update(key=f"digits/{split}/{index}", facts=facts, _seed=seed, _split=split, _index=index, _is_scan=is_scan)

    def _generator(self, purpose: str) -> np.random.Generator:
        own = vars(self)
        return _make_generator(own["_seed"], own["_index"], purpose, own["_split"])

    @cached_property
    def image(self) -> np.ndarray:
        values = load_scans()[0][self.facts.scan]
        return render(values) if vars(self)["_is_scan"] else render_varied(values, self._generator("strokes"))

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return write_captions(self.facts.digit, self._generator("captions"))

    @cached_property
    def prompts(self) -> tuple[Text, ...]:
        return write_prompts(self.facts.digit, self._generator("prompts"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return write_questions(self.facts.digit, self._generator("questions"))

    @cached_property
    def text(self) -> Text:
        return write_text(self._generator("text"))


class DigitJudge:
    """Reads a digit from a drawing: a support vector machine on 8x8 values, fitted in about a second when first asked.

    Fitted on the training half's scans as they are and as num_views augmented views each; the test half is unseen.
    """

    def __init__(self, seed: int = 0, num_views: int = 3):
        self.seed = seed
        self.num_views = num_views

    def read(self, image: ImageLike) -> int:
        """The digit 0..9 that an image shows, best at 64x64 RGB uint8; other sizes are resized."""
        picture = decode_image(image)
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return int(self._machine.predict(reduce_to_scan(np.asarray(picture)).reshape(1, -1))[0])

    @cached_property
    def accuracy(self) -> float:
        """Share of the test half's images that are read right: report it beside every score of drawings."""
        values, digits = load_scans()
        test = split_scans()["test"]
        images = np.stack([reduce_to_scan(render(values[scan])) for scan in test])
        return float((self._machine.predict(images.reshape(len(test), -1)) == digits[test]).mean())

    @cached_property
    def _machine(self):
        from sklearn.svm import SVC

        values, digits = load_scans()
        scans = np.concatenate([split_scans()["train"], split_scans()["validation"]])
        features, labels = [], []
        for scan in scans:
            rng = _make_generator(self.seed, int(scan), "judge")
            views = [render(values[scan]), *(render_varied(values[scan], rng) for _ in range(self.num_views))]
            features += [reduce_to_scan(view).ravel() for view in views]
            labels += [digits[scan]] * len(views)
        return SVC(C=10, random_state=self.seed).fit(np.stack(features), labels)


def render(values: np.ndarray, shift=(0.0, 0.0), degrees: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """A scan (8, 8) in 0..1 as a grey image (64, 64, 3) uint8, upscaled smoothly.

    shift: pixels right and down; degrees: turned clockwise; scale: 1.0 fills the middle 48 pixels.
    """
    padded = np.pad(values, 2).astype(np.float32)  # empty paper around the scan, for the filter and for turning
    cosine, sine = np.cos(np.deg2rad(degrees)) / (CELL * scale), np.sin(np.deg2rad(degrees)) / (CELL * scale)
    x, y = SIDE / 2 + shift[0], SIDE / 2 + shift[1]
    middle = len(padded) / 2
    # PIL wants the map from output to input coordinates
    backward = (cosine, sine, middle - cosine * x - sine * y, -sine, cosine, middle + sine * x - cosine * y)
    picture = Image.fromarray(padded).transform((SIDE, SIDE), Image.Transform.AFFINE, backward, Image.Resampling.BICUBIC)
    grey = BACKGROUND + (STROKE - BACKGROUND) * np.asarray(picture).clip(0, 1)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def render_varied(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan as `render` draws it, moved, turned and scaled a little."""
    shift = rng.uniform(-3, 3, size=2)
    return render(values, (shift[0], shift[1]), rng.uniform(-10, 10), rng.uniform(0.85, 1.05))


def reduce_to_scan(image: np.ndarray) -> np.ndarray:
    """An image (64, 64, 3) uint8 -> values (8, 8) in 0..1, each the mean of its 6x6 pixels as in the scans."""
    inner = image[_MARGIN : SIDE - _MARGIN, _MARGIN : SIDE - _MARGIN].astype(np.float32).mean(axis=2)
    means = inner.reshape(8, CELL, 8, CELL).mean(axis=(1, 3))
    return ((means - BACKGROUND) / (STROKE - BACKGROUND)).clip(0, 1)


@cache
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans: values (1797, 8, 8) float32 in 0..1, strokes high, and their digits (1797,)."""
    from sklearn.datasets import load_digits  # slow to import, and only this world needs it

    images, digits = load_digits(return_X_y=True)
    return (np.asarray(images, dtype=np.float32) / 16).reshape(-1, 8, 8), np.asarray(digits)


@cache
def split_scans() -> dict[str, np.ndarray]:
    """The numbers of each split's scans, all digits equally, in a fixed shuffled order."""
    digits = load_scans()[1]
    rng = _make_generator(0, 0, "split")
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(digits == digit))
        half = len(scans) // 2
        parts["validation"].append(scans[:VALIDATION_SCANS])
        parts["train"].append(scans[VALIDATION_SCANS:half])
        parts["test"].append(scans[half:])
    return {split: rng.permutation(np.concatenate(part)) for split, part in parts.items()}


def _make_generator(seed: int, index: int, purpose: str, split: str = "train") -> np.random.Generator:
    """A counter-based generator of its own for every (seed, split, index, purpose)."""
    counter = [0, 0, SPLITS.index(split), _PURPOSES.index(purpose)]
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))
