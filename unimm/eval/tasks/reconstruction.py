"""Reconstruction: what the image tokenizer keeps of an image, through the codes and back.

The score is the share of images that a judge still reads right: drawings can be no better than that. Beside it stand PSNR
(dB, over all pixels of all images) and SSIM as torchmetrics computes them, the share of the codebook that is used, and the
perplexity of the codes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from unimm.data.image import crop, pixels_to_array
from unimm.data.records import Dataset, Record
from unimm.data.worlds.digits import DigitsWorld
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.task import Example, Judgement, Result, collect, split_batches, summarize
from unimm.eval.tasks import digits, shapes
from unimm.inference.engine import Engine


@dataclass(frozen=True)
class Reconstruction:
    """Encodes and decodes the first `num_items` images of a data set, and has the judge read them."""

    name: str
    dataset: Dataset
    judge: Callable[[np.ndarray, Record], Judgement]
    describe: Callable[[Record], tuple[str, str]]
    """What is in the image: its category, and what is to be read."""
    num_items: int
    batch_size: int = 64

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Reconstruct all images."""
        fidelity, usage = Fidelity(), CodebookUsage(engine.image_tokenizer.codebook_size)
        examples = collect(self._examples(engine, fidelity, usage), progress)
        return summarize(self.name, examples, fidelity.measures() | usage.measures())

    def _examples(self, engine: Engine, fidelity: "Fidelity", usage: "CodebookUsage") -> Iterator[Example]:
        size = engine.image_tokenizer.image_size
        for numbers in split_batches(list(range(self.num_items)), self.batch_size):
            records = [self.dataset[number] for number in numbers]
            originals = [pixels_to_array(crop(_image(record), size)) for record in records]
            codes = engine.encode_image(originals)
            images = [np.asarray(image) for image in engine.decode_codes(codes)]
            fidelity.add(np.stack(images), np.stack(originals))
            usage.add(codes)
            side = round(codes.shape[1] ** 0.5)
            maps = codes.unflatten(1, (side, side)).numpy()
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
                )


class ShapesReconstruction(Reconstruction):
    """Scenes of the test split; right is what the checker reads exactly. Details: by the number of objects."""

    def __init__(self, num_items: int = 500, seed: int = 0):
        world = ShapesWorld("test", num_records=num_items, seed=seed)
        super().__init__("shapes_reconstruction", world, shapes.judge_reconstruction, shapes.describe_record, num_items)


class DigitsReconstruction(Reconstruction):
    """Scans of the test half, at most all 901 of them; right is what the machine reads right. Details: by digit."""

    def __init__(self, num_items: int = 500):
        world = DigitsWorld("test")
        num_items = min(num_items, len(world))
        super().__init__("digits_reconstruction", world, digits.judge_reconstruction, digits.describe_record, num_items)


class Fidelity:
    """PSNR and SSIM of images (N, H, W, 3) uint8, added up over batches."""

    def __init__(self) -> None:
        # Here and not above: torchmetrics takes seconds to import, and the other tasks do without it.
        from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

        self._metrics = {
            "psnr": PeakSignalNoiseRatio(data_range=1.0),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
        }

    def add(self, images: np.ndarray, originals: np.ndarray) -> None:
        """One batch."""
        made, expected = (torch.from_numpy(array).permute(0, 3, 1, 2) / 255 for array in (images, originals))
        for metric in self._metrics.values():
            metric.update(made, expected)

    def measures(self) -> dict[str, float]:
        """PSNR in dB (infinite for exact copies) and SSIM."""
        return {name: float(metric.compute()) for name, metric in self._metrics.items()}


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
