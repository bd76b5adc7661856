"""A data set's images to stored features of a frozen vision tower, once, so that training never runs the tower.

The tower runs as it does in training: in its own dtype, or under autocast to bfloat16 (`precision`). Features are stored in
bfloat16 unless told otherwise: half the space, in the dtype that a bfloat16 training rounds them to before the projector.
Processes may share the work, and what was interrupted goes on where it stopped (`unimm.inference.in_parts`).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import Dataset as TorchDataset

from unimm.data.features import (
    DTYPES,
    FeaturesManifest,
    StoredFeatures,
    begin_features,
    finish_features,
    is_stored,
    load_rows,
    preparation_fingerprint,
    shard_rows,
    unfinished_features,
)
from unimm.data.image import image_hash, look
from unimm.data.records import Dataset, ImageLike, Record
from unimm.inference.in_parts import Work, evaluating, say_kept, see_in_parts
from unimm.models.fingerprint import tower_fingerprint
from unimm.models.vision import VisionTower


def encode_features(
    tower: VisionTower,
    dataset: Dataset,
    out: str | Path,
    *,
    source: str = "",
    precision: str = "no",
    dtype: str = "bfloat16",
    work: Work | None = None,
) -> StoredFeatures:
    """Look at every image of a data set with the tower, on its device and in its dtype, and store what it sees in `out`.

    What is there already of the same images by the same tower is kept, finished or not.

    Args:
        source: what the data is called, for the manifest; default: its class.
        precision: "no", or "bf16" for autocast.
        dtype: "bfloat16" or "float32", of what is stored.
        work: how it is gone about, and by how many processes.

    Returns:
        The features, opened.

    Raises:
        ValueError: no record has an image, images are not the same when they are read again, the dtype is another, `out`
            holds something else than features, or others were begun there.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Features are stored as {' or '.join(DTYPES)}, not as '{dtype}'.")
    work, out = work or Work(), Path(out)
    ranks = work.ranks
    manifest = _describe(tower, dataset, source, precision, dtype)
    unfinished, is_there = unfinished_features(out, manifest), is_stored(out, manifest)
    ranks.wait()  # nobody begins before all have looked
    if is_there:
        say_kept(unfinished, work)
        return StoredFeatures.open(out, tower_hash=manifest.tower_hash)
    if ranks.number == 0:
        begin_features(unfinished, lambda: _find_rows(dataset))
    ranks.wait()
    rows = load_rows(unfinished)
    shown = np.flatnonzero(rows >= 0)
    images = shown[np.unique(rows[shown], return_index=True)[1]]

    def see(pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return _look(tower, pixels_NCHW, precision).to(DTYPES[dtype]).cpu()

    pixels = _Pixels(dataset, manifest.image_size)
    with evaluating(tower):
        see_in_parts(see, pixels, images, manifest.shard_rows, unfinished, "features", work)
    ranks.wait()
    if ranks.number == 0:
        finish_features(unfinished, replace(manifest, num_images=len(images)))
    ranks.wait()
    return StoredFeatures.open(out, tower_hash=manifest.tower_hash)


def _describe(tower: VisionTower, dataset: Dataset, source: str, precision: str, dtype: str) -> FeaturesManifest:
    """What is to be stored; the number of images is not known yet."""
    import unimm

    config, weight = tower.config, next(tower.parameters())
    first_image = _first_image(dataset)
    return FeaturesManifest(
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


class _Pixels(TorchDataset):
    """Pixels (3, size, size) by index, of records that have an image."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __getitem__(self, index: int) -> np.ndarray:
        return look(_image(self._dataset[index]), self._size)


def _first_image(dataset: Dataset) -> str:
    """The hash of the first image that there is.

    Raises:
        ValueError: there is none, or it is another when it is read again.
    """
    for index in range(len(dataset)):
        record = dataset[index]
        if record.image is None:
            continue
        found = {image_hash(_image(again)) for again in (record, dataset[index])}
        if len(found) > 1:
            raise ValueError(
                f"Record {record.key} has another image each time it is read: augmented images have to be looked at each time, "
                f"so store no features of them."
            )
        return found.pop()
    raise ValueError("There is nothing to look at: no record has an image.")


def _image(record: Record) -> ImageLike:
    assert record.image is not None
    return record.image


def _find_rows(dataset: Dataset) -> np.ndarray:
    """(num_records,) int64: the row of each record's image, in the order in which images first come; -1 where there is none."""
    rows = np.full(len(dataset), -1, dtype=np.int64)
    known: dict[str, int] = {}
    num_images = 0
    for index in track(range(len(dataset)), description=f"finding the images of {len(dataset):,} records", transient=True):
        image = dataset[index].image
        if image is None:
            continue
        row = known.setdefault(str(image), num_images) if isinstance(image, str | Path) else num_images
        rows[index] = row
        num_images += row == num_images
    return rows


def _look(tower: VisionTower, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (N, P, C)."""
    weight = next(tower.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tower(pixels_NCHW.to(weight.device, weight.dtype))
