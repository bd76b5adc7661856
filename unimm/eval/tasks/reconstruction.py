"""Reconstruction: what the image tokenizer keeps of an image, through the codes and back, or the latents of one that has these.

The score is the share of images that a judge still reads right: drawings can be no better than that. Beside it stand PSNR
(dB, over all pixels of all images) and SSIM as torchmetrics computes them, with their intervals, the share of the codebook that
is used, and the perplexity of the codes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from unimm.data.image import crop, pixels_to_array
from unimm.data.records import LATENTS, Dataset, Record
from unimm.data.worlds.digits import DigitsWorld
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.task import Example, ItemTask, Judgement, Result, Score, summarize
from unimm.eval.tasks import digits, shapes
from unimm.inference.engine import Engine
from unimm.inference.engine_parts import ImageCoder


@dataclass(frozen=True)
class Reconstruction(ItemTask):
    """Encodes and decodes the first `num_items` images of a data set, and has the judge read them."""

    name: str
    dataset: Dataset
    judge: Callable[[np.ndarray, Record], Judgement]
    describe: Callable[[Record], tuple[str, str]]
    """What is in the image: its category, and what is to be read."""
    num_items: int
    batch_size: int = 64
    way: str | None = None
    """Through "codes", or the "latents" of a model that draws by a flow; None: as it draws where nobody says how."""

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Reconstruct these images."""
        coder = self._latents_coder(engine)
        tokenizer = engine.image_tokenizer if coder is None else coder.tokenizer
        records = [self.dataset[number] for number in items]
        originals = [pixels_to_array(crop(_image(record), tokenizer.image_size)) for record in records]
        maps: list[np.ndarray | None] = [None] * len(items)
        if coder is not None:
            drawn = coder.decode_latents(coder.encode_latents([*originals]))
        else:
            codes = engine.encode_image(originals)
            side = tokenizer.grid_size
            maps, drawn = [*codes.unflatten(1, (side, side)).numpy()], engine.decode_codes(codes)
        images = [np.asarray(image) for image in drawn]
        for record, original, image, code_map in zip(records, originals, images, maps, strict=True):
            verdict = self.judge(image, record)
            category, expected = self.describe(record)
            yield Example(
                key=record.key,
                prompt="",
                expected=expected,
                answer=verdict.answer,
                correct=verdict.correct,
                reason=verdict.reason,
                category=category,
                drawn=True,
                image=image,
                original=original,
                codes=code_map,
                numbers={**fidelity(image, original), "codebook_size": tokenizer.codebook_size},
            )

    def _latents_coder(self, engine: Engine) -> ImageCoder | None:
        """What images go through where they do not go through codes."""
        if self.way != LATENTS and (self.way is not None or engine.image_tokenizer.codebook_size):
            return None
        if engine.latents_coder is None:
            raise ValueError("This model has no image tokenizer with latents: leave drawing=latents out.")
        return engine.latents_coder

    def score(self, examples: list[Example]) -> Result:
        """The share of images that are read right; PSNR and SSIM; how the codebook is used."""
        scores = {
            "psnr": Score.bootstrap(examples, psnr, "dB"),
            "ssim": Score.mean([example.numbers["ssim"] for example in examples], "SSIM"),
        }
        measures = {name: score.value for name, score in scores.items()}
        coded = [example.codes for example in examples if example.codes is not None]
        if coded:
            usage = CodebookUsage(int(examples[0].numbers["codebook_size"]))
            for codes in coded:
                usage.add(torch.from_numpy(codes))
            measures |= usage.measures()
        return summarize(self.name, examples, measures, other_scores=scores)


class ShapesReconstruction(Reconstruction):
    """Scenes of the test split; right is what the checker reads exactly. Details: by the number of objects."""

    def __init__(self, num_items: int = 500, seed: int = 0, way: str | None = None):
        world, judge = ShapesWorld("test", num_records=num_items, seed=seed), shapes.judge_reconstruction
        super().__init__("shapes_reconstruction", world, judge, shapes.describe_record, num_items, way=way)


class DigitsReconstruction(Reconstruction):
    """Scans of the test half, at most all 901 of them; right is what the machine reads right. Details: by digit."""

    def __init__(self, num_items: int = 500, way: str | None = None):
        world, judge = DigitsWorld("test"), digits.judge_reconstruction
        num_items = min(num_items, len(world))
        super().__init__("digits_reconstruction", world, judge, digits.describe_record, num_items, way=way)


def fidelity(image: np.ndarray, original: np.ndarray) -> dict[str, float]:
    """Of two images (H, W, 3) uint8: the mean squared error of their values in [0, 1], and SSIM."""
    # Here and not above: torchmetrics takes seconds to import, and the other tasks do without it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    made, expected = (torch.tensor(array).permute(2, 0, 1)[None] / 255 for array in (image, original))
    error = ((image.astype(np.int64) - original.astype(np.int64)) ** 2).mean() / 255**2
    return {"squared_error": float(error), "ssim": float(structural_similarity_index_measure(made, expected, data_range=1.0))}  # pyright: ignore[reportArgumentType]


def psnr(examples: list[Example]) -> float:
    """PSNR in dB over all pixels of images of one size; infinite for exact copies."""
    error = fmean(example.numbers["squared_error"] for example in examples)
    return -10 * math.log10(error) if error else math.inf


class CodebookUsage:
    """How often every code of a codebook occurs, added up over batches of codes."""

    def __init__(self, codebook_size: int) -> None:
        self._counts = torch.zeros(codebook_size, dtype=torch.long)

    def add(self, codes: torch.Tensor) -> None:
        """One batch of codes, of any shape."""
        self._counts += torch.bincount(codes.flatten().cpu(), minlength=len(self._counts))

    def measures(self) -> dict[str, float]:
        """The share of codes that occur, and the perplexity: as many equally likely codes would be as hard to guess."""
        shares = self._counts.double() / self._counts.sum().clamp(min=1)
        return {
            "codebook_usage": float((self._counts > 0).float().mean()),
            "perplexity": float(torch.special.entr(shares).sum().exp()),
        }


def _image(record: Record):
    if record.image is None:
        raise ValueError(f"Record {record.key} has no image to reconstruct.")
    return record.image
