"""The job that fills stored codes: a data set's images through the image tokenizer, once, so that training never runs it.

One dtype throughout, recorded beside the codes: an encoder in bf16 gives other codes than one in fp32. Processes may share the
work, and what was interrupted goes on where it stopped (`unimm.precompute.sharded_pass`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.image import crop
from unimm.data.records import Dataset
from unimm.data.stores.codes import (
    MANIFEST,
    CodesManifest,
    StoredCodes,
    is_stored,
    load_part,
    save_codes,
    stored_files,
    unfinished_codes,
)
from unimm.data.stores.digests import first_image_hash, key_at
from unimm.data.stores.image_rows import ImagesOf, rows_of_images
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.bad_images import forget_bad
from unimm.precompute.known_images import KnownImages
from unimm.precompute.pass_precision import precision_name, settle_precision
from unimm.precompute.pass_progress import images_progress
from unimm.precompute.reconstructions import PICTURE, TOO_LOW, reconstruct_some
from unimm.precompute.sharded_pass import Job, PassConfig, evaluating, make_parts
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
) -> StoredCodes:
    """Encode every image of a data set with the tokenizer, on its device and in its dtype, into the folder `out`.

    What is there already of the same images by the same tokenizer is kept, finished or not, and wherever they stood: only
    images that are new, or were exchanged, are encoded.

    Args:
        name: of the data set, for the manifest; default: its class.
        precision: "no", or "bf16" for autocast of the convolutions (the quantizer stays fp32): a few codes differ; or "auto":
            what the device is faster in, or what is there already was made in.
        work: how it is gone about, and by how many processes.

    Returns:
        The codes, opened.

    Raises:
        ValueError: the data set is empty, images cannot be used (all of them are named), `out` holds something else than codes,
            or was begun with other settings.
    """
    work, out = work or PassConfig(), Path(out)
    ranks = work.ranks
    with images_progress("finding the images", len(dataset), work.is_silent, unit="records") as advance:
        ends = rows_of_images(dataset, advance)
    images = dataset if ends is None else ImagesOf(dataset, ends)
    manifest = _describe(tokenizer, dataset, images, name)
    weight = next(tokenizer.parameters())
    precision = settle_precision(precision, weight, out, MANIFEST, {"tokenizer_hash": manifest.tokenizer_hash}, work)
    manifest = replace(manifest, precision=precision_name(precision, weight))
    unfinished, is_same = unfinished_codes(out, manifest, PART_RECORDS), is_stored(out, manifest)
    ranks.barrier()  # no process writes before all have looked
    if ranks.number == 0:
        unfinished.begin()
        forget_bad(unfinished)
    ranks.barrier()
    job = Job(
        see=lambda pixels: _encode(tokenizer, pixels, precision).to(torch.int32).cpu(),
        prepare=partial(crop, size=tokenizer.image_size),
        dataset=images,
        images=np.arange(len(images)),
        part_rows=PART_RECORDS,
        key="codes",
        dtype=torch.int32,
        title=f"codes of {manifest.dataset}",
    )
    known = KnownImages([*stored_files(out, manifest), *unfinished.kept()], "codes")
    if is_same and not len(known):
        work.say(f"{out} is of an older unimm and does not tell of which images it is: it is made again.")

    def look_back() -> None:
        nonlocal manifest
        some = reconstruct_some(tokenizer, images, precision, f"{job.title}, a sample and back", work.is_silent)
        if some is not None:
            some.picture.save(unfinished.workspace / PICTURE)
            work.say(some.tell(job.title, f"{unfinished.workspace / PICTURE} (in {out} when it is done)"))
            mean, worst = round(float(some.psnr.mean()), 2), round(float(some.psnr.min()), 2)
            manifest = replace(manifest, psnr=mean, psnr_worst=worst, psnr_images=len(some.psnr))

    with evaluating(tokenizer):
        is_new = make_parts(job, unfinished, known, work, is_same, look_back)
    if is_new and ranks.number == 0:
        parts = [load_part(unfinished, number) for number in range(job.num_parts)]
        codes, identities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        save_codes(out, codes, manifest, identities, unfinished.workspace.glob(PICTURE), ends)
    if not is_new:
        work.say(f"{out} is there already, of the same images: it is kept. To make it again, remove it.")
    ranks.barrier()
    if ranks.number == 0:
        unfinished.drop()
    ranks.barrier()
    stored = StoredCodes.open(out, expect_tokenizer_hash=manifest.tokenizer_hash)
    if stored.manifest.psnr is not None and stored.manifest.psnr < TOO_LOW:  # what was said before the work is far above by now
        work.say(f"WARNING: {out}: images are given back at only {stored.manifest.psnr:.1f} dB PSNR, see {out / PICTURE}.")
    return stored


def _describe(tokenizer: ImageTokenizer, dataset: Dataset, images: Dataset, name: str) -> CodesManifest:
    """What is to be stored; the precision is not settled yet. images: of all records, one by one."""
    if not len(dataset):
        raise ValueError("There is nothing to encode: the data set has no records.")
    if not len(images):
        raise ValueError("There is nothing to encode: no record has an image.")
    return CodesManifest(
        num_records=len(dataset),
        dataset=name or type(dataset).__name__,
        first_key=key_at(dataset, 0),
        last_key=key_at(dataset, len(dataset) - 1),
        first_image=first_image_hash(images),
        tokenizer_hash=fingerprint(tokenizer),
        precision="",
        image_size=tokenizer.image_size,
        num_codes=tokenizer.num_codes,
        codebook_size=tokenizer.codebook_size,
        unimm_version=package_version(),
        num_images=None if images is dataset else len(images),
    )


def _encode(tokenizer: ImageTokenizer, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Codes (N, num_codes)."""
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tokenizer.encode(pixels_NCHW.to(weight.device, weight.dtype))
