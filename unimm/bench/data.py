"""What loading people's data costs: memory and start over a million records, and images a second beside plain pipelines.

Scale: a data set of generated records goes the way of a training, through views, packing and one loading process, until so many
records were learned from, all over the data set. What that process has for itself is read inside of it, step by step.

Speed: the same JPEGs, decoded and resized by the same calls into the same batches, by as many loading processes: by our
readers, and by `webdataset` and `datasets` as their pages say. Each trial is a process of its own; pairs take turns.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimm.bench.data_files import SMALL, caption, open_records
from unimm.data.image import array_to_pixels
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, StepBatch, Steps
from unimm.data.template import PromptFormat, Template
from unimm.data.text import train_byte_bpe
from unimm.data.views import Conversation

MEGABYTE = 1e6
PEERS = {"webdataset": ("webdataset",), "datasets": ("arrow", "parquet")}
"""The plain pipelines, and the forms of files that each reads, and we beside it. `datasets` reads Arrow: of Parquet it makes a
copy first."""

IMAGE_POSITIONS, POSITIONS, ROWS = 16, 512, 8
"""Of the rows that are packed for `Scale`."""


@dataclass(frozen=True)
class Scale:
    """Records of a form, read until so many were learned from."""

    who: str
    folder: str
    num_reads: int


@dataclass(frozen=True)
class Speed:
    """Images loaded by a pipeline. who: "unimm" or a peer. form: of the files."""

    who: str
    form: str
    folder: str
    num_images: int
    image_size: int
    batch_size: int = 32
    num_workers: int = 2


class _Watched(TorchDataset):
    """Steps beside what the process that makes them has for itself, before it began and after each."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.before: float | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> tuple[StepBatch, float]:
        if self.before is None:
            self.before = _own_megabytes()
        made = self.steps[step]
        return made, _own_megabytes() - self.before


def run_scale(trial: Scale) -> dict[str, float]:
    """Learn from records through one loading process.

    Returns:
        `open_seconds` of opening the data set; `start_seconds` of that and all else until the first batch is there;
        `worker_mb`, by how much the loading process grew at most (10^6 bytes that it shares with nobody), `worker_half_mb` by
        the half of the records; `main_mb`, what opening took; `records`, the length; and `records_a_second`.
    """
    tokenizer = train_byte_bpe([caption(number) for number in range(200)], 512)
    template = Template(tokenizer, PromptFormat(), SMALL, IMAGE_POSITIONS)
    before, started = _own_megabytes(), time.perf_counter()
    dataset = open_records(Path(trial.folder), trial.who)
    opened, main = time.perf_counter() - started, _own_megabytes() - before
    mixture = Mixture([Source(trial.who, dataset, Conversation(caption_share=1.0))], template, seed=0)
    steps = _Watched(Steps(Plan(mixture, POSITIONS, ROWS)))
    loader: Iterable[tuple[StepBatch, float]] = DataLoader(
        steps, batch_size=None, sampler=range(len(steps)), num_workers=1, prefetch_factor=4
    )
    read, grown, half, first = 0, 0.0, 0.0, 0.0
    for batch, megabytes in loader:
        first = first or time.perf_counter()
        read, grown = read + len(batch.samples), max(grown, megabytes)
        half = half if half and read > trial.num_reads / 2 else grown
        if read >= trial.num_reads:
            break
    return {
        "records": len(dataset),
        "open_seconds": opened,
        "start_seconds": first - started,
        "worker_mb": grown,
        "worker_half_mb": half,
        "main_mb": main,
        "records_a_second": read / (time.perf_counter() - first),
    }


def _own_megabytes() -> float:
    return psutil.Process().memory_full_info().uss / MEGABYTE


def check_peers(names: Iterable[str]) -> None:
    """Raises ValueError where one is not known, or not installed."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"A plain pipeline is one of {', '.join(PEERS)}, not '{name}'.")
        if find_spec(name) is None:
            others = " ".join(f"--peer {other}" for other in PEERS if other != name)
            raise ValueError(f"{name} is not installed: pip install {name}, or leave it out with {others} or --images 0.")


def run_speed(trial: Speed) -> dict[str, float]:
    """`images_a_second`, from the first batch to the last, and how many `images` these were."""
    batches = {"unimm": _ours, "webdataset": _by_webdataset, "datasets": _by_datasets}[trial.who](trial)
    expected = (3, trial.image_size, trial.image_size)
    started, counted = 0.0, 0
    for pixels in batches:
        if tuple(pixels.shape[1:]) != expected or pixels.dtype != torch.float32:
            raise ValueError(f"{trial.who} gives {tuple(pixels.shape)} {pixels.dtype}, not (N, {expected}) in float32.")
        counted += len(pixels) if started else 0
        started = started or time.perf_counter()
    return {"images_a_second": counted / (time.perf_counter() - started), "images": counted}


class _Levels(TorchDataset):
    """Step -> pixels (N, 3, size, size) uint8."""

    def __init__(self, images: ImageBatches) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, step: int) -> np.ndarray:
        return self.images.load(step).pixels


def _ours(trial: Speed) -> Iterator[torch.Tensor]:
    """As `unimm train-tokenizer` loads images: whole numbers leave the loading processes, and become float32 where they are
    learned from."""
    steps = -(-trial.num_images // trial.batch_size)
    images = ImageBatches(
        [ImageSource(open_records(Path(trial.folder), trial.form))], trial.batch_size, trial.image_size, num_steps=steps
    )
    for levels in DataLoader(_Levels(images), batch_size=None, num_workers=trial.num_workers):
        yield levels.float().div_(127.5).sub_(1)


def plain_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """What `unimm.data.image.crop` makes of an upright picture, in the fewest calls: (3, size, size)."""
    side = min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    resized = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    return array_to_pixels(np.asarray(resized))


@dataclass(frozen=True)
class _Sample:
    """A sample of `webdataset` as pixels and text."""

    size: int

    def __call__(self, sample: tuple[Image.Image, str]) -> tuple[np.ndarray, str]:
        return plain_pixels(sample[0], self.size), sample[1]


@dataclass(frozen=True)
class _Rows:
    """Rows of `datasets` as pixels and texts."""

    size: int

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixels": [plain_pixels(picture, self.size) for picture in rows["image"]], "text": rows["text"]}


def _by_webdataset(trial: Speed) -> Iterator[torch.Tensor]:
    """webdataset's README: shards in any order, a buffer that is shuffled, decoded by Pillow."""
    webdataset = import_module("webdataset")
    shards = sorted(str(path) for path in Path(trial.folder).glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode("pil").to_tuple("jpg", "txt")
    data = data.map(_Sample(trial.image_size)).batched(trial.batch_size)
    for pixels, _ in webdataset.WebLoader(data, batch_size=None, num_workers=trial.num_workers):
        yield torch.as_tensor(pixels)


def _by_datasets(trial: Speed) -> Iterator[torch.Tensor]:
    """datasets' page on PyTorch: rows in any order out of its Arrow files; Parquet is first copied into its cache as such."""
    datasets = import_module("datasets")
    datasets.disable_progress_bars()
    files = sorted(str(path) for path in Path(trial.folder).glob(f"*.{trial.form}"))
    if trial.form == "arrow":
        data = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    else:
        cache = str(Path(trial.folder) / ".cache")
        data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    data = data.cast_column("image", datasets.Image()).with_transform(_Rows(trial.image_size))
    loader = DataLoader(data, trial.batch_size, shuffle=True, num_workers=trial.num_workers)
    yield from (batch["pixels"] for batch in loader)


def main() -> None:
    """One trial: JSON in, JSON out."""
    trial = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    measured = run_speed(Speed(**trial)) if "form" in trial else run_scale(Scale(**trial))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
