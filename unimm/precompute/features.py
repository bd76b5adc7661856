"""The job that fills stored features: a data set's images through a frozen vision tower, once, so that training never runs it.

The tower runs as it does in training: in its own dtype, or under autocast to bfloat16 (`precision`). Features are stored in
bfloat16 by default: half the space, in the dtype that a bfloat16 training rounds them to before the projector.
Processes may share the work, and what was interrupted goes on where it stopped (`unimm.precompute.sharded_pass`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from unimm.checkpoints.fingerprint import tower_fingerprint
from unimm.data.bad_records import BAD_RECORDS
from unimm.data.image import image_hash, look
from unimm.data.records import Dataset, ImageLike, key_at, unchecked
from unimm.data.stores.digests import preparation_fingerprint
from unimm.data.stores.features import (
    DTYPES,
    FeaturesManifest,
    StoredFeatures,
    finish_features,
    has_rows,
    load_rows,
    put_rows,
    shard_rows,
    stored_files,
    unfinished_features,
)
from unimm.data.stores.image_rows import ImagesOf
from unimm.data.stores.tensor_store import MANIFEST
from unimm.models.vision.tower import VisionTower
from unimm.precompute.bad_images import BadImage, list_bad, note_bad, noted_bad, raise_bad, short_reason
from unimm.precompute.pass_precision import precision_name, settle_precision
from unimm.precompute.pass_progress import images_progress
from unimm.precompute.sharded_pass import Job, PassConfig, Prepare, begin_pass, end_pass, evaluating, known_images, make_parts
from unimm.runtime.resumable_folder import ResumableFolder
from unimm.runtime.version import package_version


def encode_features(
    tower: VisionTower,
    dataset: Dataset,
    out: str | Path,
    *,
    source: str = "",
    precision: str = "no",
    dtype: str = "bfloat16",
    work: PassConfig | None = None,
) -> StoredFeatures:
    """Run the tower over every image of a data set, on its device and in its dtype, and store the features in `out`; returns
    them, opened. Images that are there already by the same tower, finished or not and wherever they stood, are kept.

    source: what the data is called, for the manifest; default: its class.
    precision: "no", or "bf16" for autocast; or "auto": what the device is faster in, or what is there already was made in.
    dtype: "bfloat16" or "float32", of what is stored.

    Raises:
        ValueError: no record has an image, images are not the same when they are read again or cannot be used (all of them are
            named), the dtype is another, `out` holds something else than features, or was begun with other settings.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Features are stored as {' or '.join(DTYPES)}, not as '{dtype}'.")
    work, out = work or PassConfig(), Path(out)
    manifest, weight = _describe(tower, dataset, source, dtype), next(tower.parameters())
    precision = settle_precision(precision, weight, out, MANIFEST, {"tower_hash": manifest.tower_hash}, work)
    manifest = replace(manifest, precision=precision_name(precision, weight))
    unfinished, is_same = unfinished_features(out, manifest), manifest.is_stored(out)
    prepare = Prepare(lambda: _put_rows(unfinished, dataset, work), lambda: has_rows(unfinished))
    begin_pass(unfinished, len(dataset), work, prepare)
    raise_bad(unfinished, len(dataset), work.max_bad)
    rows, ends = load_rows(unfinished)
    job = _job(tower, dataset if ends is None else ImagesOf(dataset, ends), precision, manifest, rows)
    known = known_images(out, stored_files(out, manifest), unfinished, job.key, is_same, work)
    is_same = is_same and np.array_equal(StoredFeatures.open(out).rows, rows)
    with evaluating(tower):
        is_new = make_parts(job, unfinished, known, work, is_same)
    if is_new and work.ranks.number == 0:
        bad = noted_bad(unfinished)
        if bad:
            unfinished.put(BAD_RECORDS, lambda path: list_bad(bad, path))
            work.say(f"{job.title}: {len(bad):,} images cannot be used, see {out / BAD_RECORDS}")
        finish_features(unfinished, replace(manifest, num_images=len(job.images)))
    end_pass(out, unfinished, is_new, work)
    return StoredFeatures.open(out, tower_hash=manifest.tower_hash)


def _job(tower: VisionTower, images: Dataset, precision: str, manifest: FeaturesManifest, rows: np.ndarray) -> Job:
    """rows: of each image, -1 where there is none."""
    shown = np.flatnonzero(rows >= 0)
    return Job(
        see=lambda pixels: _look(tower, pixels, precision).to(DTYPES[manifest.dtype]).cpu(),
        prepare=partial(look, size=manifest.image_size),
        dataset=images,
        images=shown[np.unique(rows[shown], return_index=True)[1]],
        part_rows=manifest.shard_rows,
        shape=(manifest.num_patches, manifest.width),
        key=StoredFeatures.KEY,
        dtype=DTYPES[manifest.dtype],
        title=f"features of {manifest.source}",
    )


def _describe(tower: VisionTower, dataset: Dataset, source: str, dtype: str) -> FeaturesManifest:
    """What is to be stored; the precision is not settled, and the number of images not known yet."""
    config = tower.config
    first_image = _first_image(dataset)
    return FeaturesManifest(
        num_records=len(dataset),
        source=source or type(dataset).__name__,
        first_key=key_at(dataset, 0),
        last_key=key_at(dataset, len(dataset) - 1),
        first_image=first_image,
        tower_hash=tower_fingerprint(tower),
        preparation=preparation_fingerprint(config.image_size),
        precision="",
        dtype=dtype,
        image_size=config.image_size,
        num_patches=config.num_patches,
        width=config.width,
        num_images=0,
        shard_rows=shard_rows(config.num_patches, config.width, dtype),
        unimm_version=package_version(),
    )


def _first_image(dataset: Dataset) -> str:
    """The hash of the first image that there is.

    Raises:
        ValueError: there is none, or it is another when it is read again.
    """
    for index in range(len(dataset)):
        try:
            record = unchecked(dataset, index)
        except ValueError:
            return ""
        if record.image is None:
            continue
        try:
            found = {image_hash(image) for image in (record.image, unchecked(dataset, index).image) if image is not None}
        except ValueError:  # reported with all others of the kind
            return ""
        if len(found) > 1:
            raise ValueError(
                f"Record {record.key} has another image each time it is read: augmented images have to be looked at each time, "
                f"so store no features of them."
            )
        return found.pop()
    raise ValueError("There is nothing to look at: no record has an image.")


def _put_rows(unfinished: ResumableFolder, dataset: Dataset, work: PassConfig) -> None:
    """Find the row of each record's image: images are numbered as they first come, and records that name the same file share
    one. Records that cannot be read are noted."""
    rows: list[int] = []
    ends: list[int] = []
    known: dict[str, int] = {}
    bad: list[BadImage] = []
    num_images = 0
    with images_progress("finding the images", len(dataset), work.is_silent, unit="records") as advance:
        for index in range(len(dataset)):
            images: list[ImageLike | None] = [None]
            try:
                images = [one.image for one in unchecked(dataset, index).images] or [None]
            except (ValueError, OSError) as error:
                bad.append(BadImage(key_at(dataset, index) or f"record {index}", short_reason(error)))
            for image in images:
                row = -1
                if image is not None:
                    row = known.setdefault(str(image), num_images) if isinstance(image, str | Path) else num_images
                    num_images += row == num_images
                rows.append(row)
            ends.append(len(rows))
            advance(1)
    note_bad(unfinished, None, bad)
    if len(bad) <= work.max_bad * len(dataset):
        have_one_each = len(rows) == len(ends)
        put_rows(unfinished, np.array(rows, np.int64), None if have_one_each else np.array(ends, np.int64))


def _look(tower: VisionTower, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Features (N, P, C)."""
    weight = next(tower.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tower(pixels_NCHW.to(weight.device, weight.dtype))
