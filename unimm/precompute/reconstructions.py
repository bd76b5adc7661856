"""How well an image tokenizer reconstructs the images of a data set: said before hours go into their codes.

A model that learns codes learns to draw what they can show. Where a tokenizer does not know such pictures (photos on white, and
it was trained on shapes on black), its codes show something else, a training on them is content with its loss, and what it
draws is garbage.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from unimm.data.image import crop, pixels_to_array, to_pil
from unimm.data.records import Dataset
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.bad_images import BadImage, UsedImages
from unimm.precompute.pass_progress import images_progress

NUM_IMAGES = 64
AT_ONCE = 8
MOST_SECONDS = 30.0
"""After which no more images are tried: on a slow CPU a few have to do."""

TOO_LOW = 15.0
"""In dB. An image tokenizer that knows such images has 20 and more; a picture against its mean colour has about 10 to 15."""

MANY = 0.1
"""A share of images under it that is worth a warning, where the others are well."""

SMALLEST_ERROR = 1e-2
"""Of a mean square in levels of 255: an exact copy has 68 dB, not infinitely many."""

PICTURE = "reconstructions.png"
NUM_SHOWN = 8


@dataclass(frozen=True)
class Reconstructions:
    """psnr: of each image of a sample, in dB. picture: some of them, originals above what their codes show, the worst first."""

    psnr: np.ndarray
    picture: Image.Image

    def numbers(self) -> dict[str, float]:
        """What a manifest says of them: the mean and the worst in dB, and of how many images."""
        mean, worst = round(float(self.psnr.mean()), 2), round(float(self.psnr.min()), 2)
        return {"psnr": mean, "psnr_worst": worst, "psnr_images": len(self.psnr)}

    def tell(self, title: str, where: str) -> str:
        """A line for a person, and a warning where codes cannot show the images."""
        mean, worst, count = float(self.psnr.mean()), float(self.psnr.min()), len(self.psnr)
        line = f"{title}: given back at {mean:.1f} dB PSNR (mean of {count} images, the worst at {worst:.1f}); see {where}"
        num_low = int((self.psnr < TOO_LOW).sum())
        if mean >= TOO_LOW and num_low < MANY * count:
            return line
        return (
            f"{line}\n"
            f"WARNING: {num_low} of {count} images are given back at under {TOO_LOW:.0f} dB: their codes do not show them, and "
            f"a model that learns from them will draw something else. Train an image tokenizer on these images (unimm "
            f"train-tokenizer images=image_folder images.folder=FOLDER images.validation_folder=FOLDER out=TOKENIZER), "
            f"and encode with it (image_tokenizer=TOKENIZER/model). For some dozens of pictures on a CPU: "
            f"unimm train-tokenizer +experiment=few_pictures/tokenizer images.folder=FOLDER out=TOKENIZER."
        )


def reconstruct_some(
    tokenizer: ImageTokenizer, dataset: Dataset, precision: str, title: str = "", quiet: bool = True
) -> Reconstructions | None:
    """Images from all over a data set through the tokenizer and back, as it will encode them; None where none can be used.

    title: of the progress, unless it is quiet.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, NUM_IMAGES).astype(int)).tolist()
    # In any order, so that a sample that is cut short is still from all over.
    order = np.random.Generator(np.random.Philox(key=0)).permutation(indices)
    images = UsedImages(dataset, lambda image: crop(image, tokenizer.image_size))
    originals: list[np.ndarray] = []
    made: list[np.ndarray] = []
    started = time.monotonic()
    with images_progress(title, len(order), quiet) as advance:
        for start in range(0, len(order), AT_ONCE):
            if originals and time.monotonic() - started > MOST_SECONDS:
                break
            tried = [images[int(index)] for index in order[start : start + AT_ONCE]]
            pixels = [one for one in tried if not isinstance(one, BadImage)]
            if pixels:
                originals += pixels
                made += list(_there_and_back(tokenizer, np.stack(pixels), precision))
            advance(len(tried))
    if not originals:
        return None
    targets, given = (pixels_to_array(np.stack(images)) for images in (originals, made))
    errors = np.square(targets.astype(np.float64) - given).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(errors, SMALLEST_ERROR))
    return Reconstructions(psnr, _rows(originals, made, psnr))


@torch.inference_mode()
def _there_and_back(tokenizer: ImageTokenizer, pixels_NCHW: np.ndarray, precision: str) -> np.ndarray:
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        drawn_NCHW, _ = tokenizer.there_and_back(torch.from_numpy(pixels_NCHW).to(weight.device, weight.dtype))
        return drawn_NCHW.float().clamp(-1, 1).cpu().numpy()


def _rows(originals: list[np.ndarray], made: list[np.ndarray], psnr: np.ndarray) -> Image.Image:
    """The worst image, then others at random, above their reconstructions."""
    worst = int(psnr.argmin())
    shown = [worst, *(index for index in range(len(psnr)) if index != worst)][:NUM_SHOWN]
    rows = [np.concatenate([images[index] for index in shown], axis=2) for images in (originals, made)]
    return to_pil(np.concatenate(rows, axis=1))
