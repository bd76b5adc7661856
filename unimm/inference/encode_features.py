"""A data set's images to stored features of a frozen vision tower, once, so that training never runs the tower.

The tower runs as it does in training: in its own dtype, or under autocast to bfloat16 (`precision`). Features are stored in
bfloat16 unless told otherwise: half the space, in the dtype that a bfloat16 training rounds them to before the projector.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimm.data.features import (
    DTYPES,
    FeaturesManifest,
    StoredFeatures,
    check_folder,
    image_fingerprint,
    preparation_fingerprint,
    save_features,
    shard_rows,
)
from unimm.data.image import look
from unimm.data.records import Dataset, Record
from unimm.models.fingerprint import tower_fingerprint
from unimm.models.vision import VisionTower


def encode_features(
    tower: VisionTower,
    dataset: Dataset,
    out: str | Path,
    *,
    source: str = "",
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "no",
    dtype: str = "bfloat16",
) -> StoredFeatures:
    """Look at every image of a data set with the tower, on its device and in its dtype, and store what it sees in `out`.

    Args:
        source: what the data is called, for the manifest; default: its class.
        num_workers: processes that prepare images ahead.
        precision: "no", or "bf16" for autocast.
        dtype: "bfloat16" or "float32", of what is stored.

    Returns:
        The features, opened.

    Raises:
        ValueError: no record has an image, images are not the same when they are read again, the dtype is another, or `out`
            holds something else than features.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Features are stored as {' or '.join(DTYPES)}, not as '{dtype}'.")
    check_folder(Path(out))
    import unimm

    config, weight = tower.config, next(tower.parameters())
    first_image = _first_image(dataset, config.image_size)
    rows = np.full(len(dataset), -1, dtype=np.int64)
    manifest = FeaturesManifest(
        num_records=len(dataset),
        source=source or type(dataset).__name__,
        first_key=dataset[0].key,
        last_key=dataset[len(dataset) - 1].key,
        first_image=first_image,
        tower_hash=tower_fingerprint(tower),
        preparation=preparation_fingerprint(config.image_size),
        precision=precision if precision != "no" else str(weight.dtype).removeprefix("torch."),
        dtype=dtype,
        image_size=config.image_size,
        num_patches=config.num_patches,
        width=config.width,
        num_images=0,
        shard_rows=shard_rows(config.num_patches, config.width, dtype),
        unimm_version=unimm.__version__,
    )
    items = _Items(dataset, config.image_size)
    loader = DataLoader(items, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    batches = track(loader, description=f"looking at the images of {len(dataset):,} records")

    def features() -> Iterator[torch.Tensor]:
        for pixels_NCHW in _new_images(batches, rows):
            yield _look(tower, pixels_NCHW, precision).to(DTYPES[dtype]).cpu()

    was_training = tower.training
    tower.eval()
    save_features(Path(out), _in_shards(features(), manifest.shard_rows), rows, manifest)
    tower.train(was_training)
    return StoredFeatures.open(out, tower_hash=manifest.tower_hash)


_Item = tuple[str | None, np.ndarray | None]
"""The file that an image lies in, where it is one, and pixels (3, size, size), where there is an image."""


class _Items(TorchDataset):
    """An item a record."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> _Item:
        image = self._dataset[index].image
        if image is None:
            return None, None
        return str(image) if isinstance(image, str | Path) else None, look(image, self._size)


def _first_image(dataset: Dataset, size: int) -> str:
    """The fingerprint of the first image that there is.

    Raises:
        ValueError: there is none, or it is another when it is read again.
    """
    for index in range(len(dataset)):
        record = dataset[index]
        if record.image is None:
            continue
        found = {image_fingerprint(_image(again), size) for again in (record, dataset[index])}
        if len(found) > 1:
            raise ValueError(
                f"Record {record.key} has another image each time it is read: augmented images have to be looked at each time, "
                f"so store no features of them."
            )
        return found.pop()
    raise ValueError("There is nothing to look at: no record has an image.")


def _image(record: Record):
    assert record.image is not None
    return record.image


def _new_images(batches: Iterable[list[_Item]], rows: np.ndarray) -> Iterator[torch.Tensor]:
    """Pixels (N, 3, H, W) of images that were not there before, batch by batch; `rows` (num_records,) are filled on the way."""
    known: dict[str, int] = {}
    index = num_images = 0
    for items in batches:
        fresh = []
        for file, pixels in items:
            if pixels is not None:
                rows[index] = known.get(file, num_images) if file else num_images
                if rows[index] == num_images:
                    fresh.append(pixels)
                    num_images += 1
                if file:
                    known[file] = int(rows[index])
            index += 1
        if fresh:
            yield torch.from_numpy(np.stack(fresh))


@torch.inference_mode()
def _look(tower: VisionTower, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (N, P, C)."""
    weight = next(tower.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tower(pixels_NCHW.to(weight.device, weight.dtype))


def _in_shards(parts: Iterator[torch.Tensor], num_rows: int) -> Iterator[torch.Tensor]:
    """Tensors (n, ...) laid end to end and cut into such of `num_rows`; the last may be shorter."""
    waiting: list[torch.Tensor] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) >= num_rows:
            together = torch.cat(waiting)
            yield together[:num_rows]
            waiting = [together[num_rows:]]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)
