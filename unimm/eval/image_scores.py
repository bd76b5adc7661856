"""Scores of folders of images: FID against real ones, CLIPScore against captions, and what an image tokenizer keeps.

    fid            Frechet distance of Inception-v3's features (arXiv 1706.08500), by torchmetrics, with the network and the
                   resizing of torch-fidelity: the ones of the paper's TensorFlow code
    clip_score     100 cos(image, caption) of a CLIP (arXiv 2104.08718), by torchmetrics
    rfid, psnr,    of images through the image tokenizer's codes and back: PSNR and SSIM are means over images, LPIPS is VGG's,
    ssim, lpips    beside them how much of the codebook is used

Every image is cut to the square at its centre and resized to `size` (Pillow's bicubic filter, with antialiasing). FIDs compare
only under one protocol, so the protocol stands beside them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimm.data.image import crop, decode_image, pixels_to_array
from unimm.data.readers.image_folder import ImageFolder
from unimm.eval.benchmarks.benchmark import interval_of, mean_and_error, need, read_json_lines
from unimm.inference.engine import Engine
from unimm.runtime.version import package_version
from unimm.training.image_tokenizer.metrics import measure_usage

ENOUGH = 10_000
"""Images below which FID is biased upwards by more than papers' differences."""


@dataclass(frozen=True)
class ImageScore:
    """One number. error: its standard error, None where it is not known. count: of how many images."""

    name: str
    value: float
    error: float | None
    count: int
    unit: str
    higher_is_better: bool


@dataclass
class ImageScores:
    """What was measured, how (`protocol`), and what a reader should know (`notes`)."""

    protocol: dict[str, Any]
    scores: list[ImageScore] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `unimm eval` writes scores, with units and the protocol."""
        tasks = {}
        for one in self.scores:
            interval = interval_of(one.value, one.error)
            tasks[one.name] = {
                **{"score": _finite(one.value), "interval": interval, "count": one.count, "standard_error": _finite(one.error)},
                **{"unit": one.unit, "higher_is_better": one.higher_is_better, "details": {}, "measures": self.measures},
                "seconds": 0.0,
            }
        return {"finished": True, "tasks": tasks, "protocol": self.protocol, "notes": self.notes}


class SquareImages:
    """The images of a folder and of those in it, as squares.

    Raises:
        ValueError: there are fewer than two.
    """

    def __init__(self, folder: Path, size: int | None = None, limit: int | None = None) -> None:
        self.folder = folder
        self._images = ImageFolder(folder, captions=False)
        self.count = min(len(self._images), limit or len(self._images))
        if self.count < 2:
            raise ValueError(f"{folder} holds {self.count} image: a score needs two at least.")
        self.size = size or self._own_size()

    def keys(self) -> list[str]:
        """Paths below the folder, sorted."""
        return [self._images[number].key for number in range(self.count)]

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        """Arrays (N, size, size, 3) uint8, in the order of `keys`."""
        for start in range(0, self.count, batch):
            yield np.stack([self._square(number) for number in range(start, min(start + batch, self.count))])

    def _square(self, number: int) -> np.ndarray:
        return pixels_to_array(crop(self._image(number), self.size))

    def _own_size(self) -> int:
        width, height = decode_image(self._image(0)).size
        if width != height:
            raise ValueError(f"{self.folder} holds images of {width} x {height}: say with --size to what square they are cut.")
        return width

    def _image(self, number: int) -> Any:
        image = self._images[number].image
        assert image is not None
        return image


class FrechetDistance:
    """FID, added up over batches.

    Args:
        features: Inception (`unimm.eval.image_networks`), or another network: images (N, 3, H, W) uint8 -> (N, D).
    """

    def __init__(self, features: nn.Module, device: torch.device) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._metric = FrechetInceptionDistance(feature=features).to(device)
        self._device = device

    @torch.inference_mode()
    def add(self, images_NHWC: np.ndarray, is_real: bool) -> None:
        """A batch (N, H, W, 3) uint8."""
        self._metric.update(to_tensor(images_NHWC).to(self._device), real=is_real)

    def value(self) -> float:
        """The distance; at least two images of each kind were added."""
        return float(self._metric.compute())


def score_images(
    images: SquareImages,
    reference: SquareImages | None,
    captions: dict[str, str] | None,
    features: nn.Module | None,
    clip: Callable[[], tuple[Any, Any]] | None,
    device: torch.device,
    batch: int = 32,
    progress: Callable[[int], object] = lambda _: None,
) -> ImageScores:
    """FID where there is a `reference`, CLIPScore where there are `captions` ({path below the folder: caption}).

    features, clip: the networks (`unimm.eval.image_networks`).

    Raises:
        ValueError: an image has no caption.
    """
    keys = images.keys() if captions is not None else []
    if captions is not None and (without := [key for key in keys if key not in captions]):
        others = f", and {len(without) - 1:,} others have none" if len(without) > 1 else ""
        raise ValueError(f"{images.folder} / {without[0]} has no caption{others}.")
    found = ImageScores(_protocol(images, device))
    if reference is not None and features is not None:
        distance = FrechetDistance(features, device)
        for is_real, source in ((True, reference), (False, images)):
            for arrays in source.batches(batch):
                distance.add(arrays, is_real)
                progress(len(arrays))
        found.scores.append(ImageScore("fid", distance.value(), None, images.count, "FID", False))
        found.protocol |= _fid_protocol(features) | {"reference": str(reference.folder.name), "num_reference": reference.count}
        _note_few(found, min(images.count, reference.count))
    if captions is not None and clip is not None:
        found.scores.append(_clip_score(images, [captions[key] for key in keys], clip, device, batch, progress))
    return found


def score_reconstructions(
    engine: Engine,
    images: SquareImages,
    features: nn.Module | None,
    lpips: nn.Module | None,
    batch: int = 32,
    progress: Callable[[int], object] = lambda _: None,
) -> ImageScores:
    """What the engine's image tokenizer keeps of images, whose `size` is the tokenizer's.

    features, lpips: the networks of rFID and LPIPS (`unimm.eval.image_networks`, `load_lpips`); None leaves the score out.
    """
    device = engine.device
    found = ImageScores(_protocol(images, device) | {"model": engine.model_hash})
    counts = torch.zeros(engine.image_tokenizer.codebook_size, dtype=torch.long)
    distance = None if features is None else FrechetDistance(features, device)
    each: dict[str, list[list[float]]] = {"psnr": [], "ssim": []} | ({} if lpips is None else {"lpips": []})
    for originals in images.batches(batch):
        codes = engine.encode_image(list(originals))
        made = np.stack([np.asarray(image) for image in engine.decode_codes(codes)])
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
        for name, values in _fidelity(made, originals, lpips, device).items():
            each[name] += [[value] for value in values]
        if distance is not None:
            distance.add(originals, True)
            distance.add(made, False)
        progress(len(originals))
    if distance is not None and features is not None:
        found.scores.append(ImageScore("rfid", distance.value(), None, images.count, "FID", False))
        found.protocol |= _fid_protocol(features)
        _note_few(found, images.count)
    units = {"psnr": ("dB", True), "ssim": ("from 0 to 1", True), "lpips": ("LPIPS, VGG", False)}
    found.scores += [ImageScore(name, *mean_and_error(groups), *units[name]) for name, groups in each.items()]
    found.measures = {name.replace("codes/", "codebook_"): value for name, value in measure_usage(counts).items()}
    return found


def read_captions(path: Path) -> dict[str, str]:
    """Captions by file of a JSONL, {"file", "caption"} a line, as `unimm export coco` writes it. ValueError: another form."""
    where = "the form of captions"
    pairs = [
        (need(one, "file", str, str(path), where), need(one, "caption", str, str(path), where))
        for _, one in read_json_lines(path)
    ]
    return dict(pairs)


def to_tensor(images_NHWC: np.ndarray) -> Tensor:
    """Arrays (N, H, W, 3) uint8 as a tensor (N, 3, H, W) uint8."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def _clip_score(
    images: SquareImages, captions: list[str], clip: Any, device: torch.device, batch: int, progress: Callable[[int], object]
) -> ImageScore:
    """The mean, and its error from the means of batches, which are all that torchmetrics gives."""
    from torchmetrics.multimodal import CLIPScore

    metric, means, done = CLIPScore(clip).to(device), [], 0
    for arrays in images.batches(batch):
        before = float(metric.score)
        metric.update(list(to_tensor(arrays).to(device)), captions[done : done + len(arrays)])
        means.append((float(metric.score) - before, len(arrays)))
        done += len(arrays)
        progress(len(arrays))
    value = float(metric.compute())
    error = None
    if len(means) > 1:
        residuals = math.fsum((total - count * value) ** 2 for total, count in means)
        error = math.sqrt(residuals * len(means) / (len(means) - 1)) / done
    return ImageScore("clip_score", value, error, done, "100 cosine", True)


@torch.inference_mode()
def _fidelity(made: np.ndarray, originals: np.ndarray, lpips: nn.Module | None, device: torch.device) -> dict[str, list[float]]:
    """Of each image."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    drawn, target = (to_tensor(array).to(device).float() / 127.5 - 1 for array in (made, originals))
    limits = (-1.0, 1.0)
    values: dict[str, Any] = {
        "psnr": peak_signal_noise_ratio(drawn, target, limits, reduction="none", dim=(1, 2, 3)),
        "ssim": structural_similarity_index_measure(drawn, target, data_range=limits, reduction="none"),
    }
    if lpips is not None:
        values["lpips"] = lpips.to(device)(drawn, target)
    return {name: value.flatten().tolist() for name, value in values.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _protocol(images: SquareImages, device: torch.device) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("torch", "torchmetrics", "torch-fidelity", "transformers", "pillow")
    versions = {name: version(name) for name in packages if find_spec({"pillow": "PIL"}.get(name, name.replace("-", "_")))}
    return {
        "images": images.folder.name,
        "num_images": images.count,
        "size": images.size,
        "resize": "centre square, Pillow bicubic with antialiasing",
        "device": device.type,
        "versions": {"unimm": package_version(), **versions},
    }


def _fid_protocol(features: nn.Module) -> dict[str, Any]:
    name = type(features).__name__
    if name == "NoTrainInceptionV3":
        return {"features": "inception-v3-compat, 2048", "resize_to_299": "bilinear as TensorFlow 1 (torch-fidelity)"}
    return {"features": name}


def _note_few(found: ImageScores, count: int) -> None:
    if count < ENOUGH:
        found.notes.append(
            f"FID of {count:,} images is biased upwards: compare it only with FIDs of as many ({ENOUGH:,} or more)."
        )
