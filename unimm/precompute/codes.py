"""The job that fills stored codes: a data set's images through the image tokenizer, once, so that training never runs it.

One dtype throughout, recorded beside the codes: an encoder in bf16 gives other codes than one in fp32. Processes may share the
work, and what was interrupted goes on where it stopped (`unimm.precompute.sharded_pass`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.bad_records import BAD_RECORDS
from unimm.data.grids import Grid
from unimm.data.image import crop
from unimm.data.records import Dataset, key_at
from unimm.data.stores.codes import CodesManifest, StoredCodes, load_part, save_codes, stored_files, unfinished_codes
from unimm.data.stores.digests import first_image_hash
from unimm.data.stores.image_rows import ImagesOf, rows_of_images
from unimm.data.stores.tensor_store import MANIFEST
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.bad_images import list_bad, noted_bad
from unimm.precompute.pass_precision import precision_name, settle_precision
from unimm.precompute.pass_progress import images_progress
from unimm.precompute.reconstructions import PICTURE, TOO_LOW, reconstruct_some
from unimm.precompute.sharded_pass import Job, PassConfig, begin_pass, end_pass, evaluating, known_images, make_parts
from unimm.runtime.resumable_folder import ResumableFolder
from unimm.runtime.version import package_version

PART_RECORDS = 4096
"""Records whose codes are computed at a time, and lost at most."""


def encode_dataset(
    tokenizer: ImageTokenizer,
    dataset: Dataset,
    out: str | Path,
    *,
    name: str = "",
    precision: str = "no",
    work: PassConfig | None = None,
    grid: Grid | None = None,
) -> StoredCodes:
    """Encode every image of a data set with the tokenizer, on its device and in its dtype, into the folder `out`; returns the
    codes, opened. Images that are there already by the same tokenizer, finished or not and wherever they stood, are kept.

    name: of the data set, for the manifest; default: its class.
    precision: "no", or "bf16" for autocast of the convolutions (the quantizer stays fp32): a few codes differ; or "auto": what
        the device is faster in, or what is there already was made in.
    grid: rows and columns of the codes, of the form of which images are cut; None: the tokenizer's own.

    Raises:
        ValueError: the data set is empty, images cannot be used (all of them are named), `out` holds something else than codes,
            or was begun with other settings.
    """
    work, out = work or PassConfig(), Path(out)
    images, ends = find_images(dataset, work)
    manifest, weight = _describe(tokenizer, dataset, images, name, grid), next(tokenizer.parameters())
    precision = settle_precision(precision, weight, out, MANIFEST, {"tokenizer_hash": manifest.tokenizer_hash}, work)
    manifest = replace(manifest, precision=precision_name(precision, weight))
    unfinished, is_same = unfinished_codes(out, manifest, PART_RECORDS), manifest.is_stored(out)
    begin_pass(unfinished, len(images), work)
    job = _job(tokenizer, images, precision, f"codes of {manifest.dataset}", grid)
    known = known_images(out, stored_files(out, manifest), unfinished, job.key, is_same, work)
    fidelity: dict[str, Any] = {}

    def look_back() -> None:
        fidelity.update(_reconstruct(tokenizer, job, precision, out, unfinished, work))

    with evaluating(tokenizer):
        is_new = make_parts(job, unfinished, known, work, is_same, look_back)
    if is_new and work.ranks.number == 0:
        _save(out, unfinished, job, replace(manifest, **fidelity), ends, work)
    end_pass(out, unfinished, is_new, work)
    stored = StoredCodes.open(out, tokenizer_hash=manifest.tokenizer_hash)
    if stored.manifest.psnr is not None and stored.manifest.psnr < TOO_LOW:  # what was said before the work is far above by now
        work.say(f"WARNING: {out}: images are given back at only {stored.manifest.psnr:.1f} dB PSNR, see {out / PICTURE}.")
    return stored


def find_images(dataset: Dataset, work: PassConfig) -> tuple[Dataset, np.ndarray | None]:
    """A data set of the images of another one alone, and where each record's end among them: None where every record has
    one."""
    with images_progress("finding the images", len(dataset), work.is_silent, unit="records") as advance:
        ends = rows_of_images(dataset, advance)
    return dataset if ends is None else ImagesOf(dataset, ends), ends


def describe_images(tokenizer: ImageTokenizer, dataset: Dataset, images: Dataset, name: str) -> dict[str, Any]:
    """What manifests of stored codes and of latents say alike, the precision empty. images: of all records, one by one.

    Raises:
        ValueError: there are none.
    """
    if not len(dataset):
        raise ValueError("There is nothing to encode: the data set has no records.")
    if not len(images):
        raise ValueError("There is nothing to encode: no record has an image.")
    return {
        "num_records": len(dataset),
        "dataset": name or type(dataset).__name__,
        "first_key": key_at(dataset, 0),
        "last_key": key_at(dataset, len(dataset) - 1),
        "first_image": first_image_hash(images),
        "tokenizer_hash": fingerprint(tokenizer),
        "precision": "",
        "image_size": tokenizer.image_size,
        "unimm_version": package_version(),
    }


def _save(
    out: Path, unfinished: ResumableFolder, job: Job, manifest: CodesManifest, ends: np.ndarray | None, work: PassConfig
) -> None:
    """Put the parts together, and list what could not be used."""
    parts = [load_part(unfinished, number) for number in range(job.num_parts)]
    codes, identities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    bad, files = noted_bad(unfinished), list(unfinished.workspace.glob(PICTURE))
    if bad:
        files.append(unfinished.workspace / BAD_RECORDS)
        list_bad(bad, files[-1])
        work.say(f"{job.title}: {len(bad):,} of {len(job.images):,} images cannot be used, see {out / BAD_RECORDS}")
    save_codes(out, codes, replace(manifest, num_bad=len(bad)), identities, files, ends)


def _job(tokenizer: ImageTokenizer, images: Dataset, precision: str, title: str, grid: Grid | None) -> Job:
    rows, columns = grid or (tokenizer.grid_size, tokenizer.grid_size)
    pixels_a_code = tokenizer.config.downsampling
    return Job(
        see=lambda pixels: _encode(tokenizer, pixels, precision, (rows, columns)).to(torch.int32).cpu(),
        prepare=partial(crop, size=(rows * pixels_a_code, columns * pixels_a_code)),
        dataset=images,
        images=np.arange(len(images)),
        part_rows=PART_RECORDS,
        shape=(rows * columns,),
        key=StoredCodes.KEY,
        dtype=torch.int32,
        title=title,
    )


def _reconstruct(
    tokenizer: ImageTokenizer, job: Job, precision: str, out: Path, unfinished: ResumableFolder, work: PassConfig
) -> dict[str, Any]:
    """Code a sample and decode it: a picture beside the codes, a line, and what the manifest says of it."""
    some = reconstruct_some(tokenizer, job.dataset, precision, f"{job.title}, a sample and back", work.is_silent)
    if some is None:
        return {}
    some.picture.save(unfinished.workspace / PICTURE)
    work.say(some.tell(job.title, f"{unfinished.workspace / PICTURE} (in {out} when it is done)"))
    return some.numbers()


def _describe(
    tokenizer: ImageTokenizer, dataset: Dataset, images: Dataset, name: str, grid: Grid | None = None
) -> CodesManifest:
    """What is to be stored; the precision is not settled yet. images: of all records, one by one."""
    return CodesManifest(
        **describe_images(tokenizer, dataset, images, name),
        num_codes=tokenizer.num_codes if grid is None else grid.num_codes,
        codebook_size=tokenizer.codebook_size,
        num_images=None if images is dataset else len(images),
        grid="" if grid is None else grid.name,
    )


def _encode(
    tokenizer: ImageTokenizer, pixels_NCHW: torch.Tensor, precision: str, grid: tuple[int, int] | None = None
) -> torch.Tensor:
    """Codes (N, num_codes)."""
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tokenizer.encode(pixels_NCHW.to(weight.device, weight.dtype), grid)
