"""The job that fills stored latents: a data set's images through an image tokenizer that has latents, once, so that training
never runs it. It keeps the promises of stored codes (`unimm.precompute.codes`): processes share the work, and what was
interrupted goes on where it stopped.

What is stored is the mean of each latent: a model that learns to draw by a flow adds noise of its own.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.data.bad_records import BAD_RECORDS
from unimm.data.image import crop
from unimm.data.records import Dataset, key_at
from unimm.data.stores.digests import first_image_hash
from unimm.data.stores.latents import LatentsManifest, StoredLatents, finish_latents, shard_name, shard_rows, stored_files
from unimm.data.stores.tensor_store import MANIFEST
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.bad_images import list_bad, noted_bad
from unimm.precompute.codes import find_images
from unimm.precompute.pass_precision import precision_name, settle_precision
from unimm.precompute.reconstructions import PICTURE, Reconstructions, reconstruct_some
from unimm.precompute.sharded_pass import Job, PassConfig, begin_pass, end_pass, evaluating, known_images, make_parts
from unimm.runtime.version import package_version


def encode_latents(
    tokenizer: ImageTokenizer,
    dataset: Dataset,
    out: str | Path,
    *,
    name: str = "",
    precision: str = "no",
    work: PassConfig | None = None,
) -> StoredLatents:
    """Encode every image of a data set as latents, with the arguments and promises of `unimm.precompute.codes.encode_dataset`;
    returns the latents, opened.

    Raises:
        ValueError: as there, or the tokenizer has codes.
    """
    work, out = work or PassConfig(), Path(out)
    images, ends = find_images(dataset, work)
    manifest, weight = _describe(tokenizer, dataset, images, name), next(tokenizer.parameters())
    precision = settle_precision(precision, weight, out, MANIFEST, {"tokenizer_hash": manifest.tokenizer_hash}, work)
    manifest = replace(manifest, precision=precision_name(precision, weight))
    unfinished, is_same = manifest.unfinished(out, shard_name), manifest.is_stored(out)
    begin_pass(unfinished, len(images), work)
    job = Job(
        see=lambda pixels: _encode(tokenizer, pixels, precision),
        prepare=partial(crop, size=tokenizer.image_size),
        dataset=images,
        images=np.arange(len(images)),
        part_rows=manifest.shard_rows,
        shape=manifest.shape,
        key=StoredLatents.KEY,
        dtype=torch.float32,
        title=f"latents of {manifest.dataset}",
    )
    known = known_images(out, stored_files(out, manifest), unfinished, job.key, is_same, work)
    given_back: list[Reconstructions] = []

    def look_back() -> None:
        some = reconstruct_some(tokenizer, images, precision, f"{job.title}, a sample and back", work.is_silent)
        if some is not None:
            given_back.append(some)
            some.picture.save(unfinished.workspace / PICTURE)
            work.say(some.tell(job.title, f"{unfinished.workspace / PICTURE} (in {out} when it is done)"))

    with evaluating(tokenizer):
        is_new = make_parts(job, unfinished, known, work, is_same, look_back)
    if is_new and work.ranks.number == 0:
        if bad := noted_bad(unfinished):
            unfinished.put(BAD_RECORDS, lambda path: list_bad(bad, path))
            work.say(f"{job.title}: {len(bad):,} of {len(images):,} images cannot be used, see {out / BAD_RECORDS}")
        for some in given_back:
            unfinished.put(PICTURE, lambda path, picture=some.picture: picture.save(path, format="png"))
            fidelity = {"psnr": round(float(some.psnr.mean()), 2), "psnr_worst": round(float(some.psnr.min()), 2)}
            manifest = replace(manifest, **fidelity, psnr_images=len(some.psnr))
        finish_latents(unfinished, replace(manifest, num_bad=len(bad)), ends)
    end_pass(out, unfinished, is_new, work)
    return StoredLatents.open(out, tokenizer_hash=manifest.tokenizer_hash)


def _describe(tokenizer: ImageTokenizer, dataset: Dataset, images: Dataset, name: str) -> LatentsManifest:
    """What is to be stored; the precision is not settled yet. images: of all records, one by one."""
    if not tokenizer.is_continuous:
        raise ValueError("This image tokenizer has codes, no latents: data of stored codes is encoded by it.")
    if not len(dataset) or not len(images):
        raise ValueError("There is nothing to encode: no record has an image.")
    return LatentsManifest(
        num_records=len(dataset),
        dataset=name or type(dataset).__name__,
        first_key=key_at(dataset, 0),
        last_key=key_at(dataset, len(dataset) - 1),
        first_image=first_image_hash(images),
        tokenizer_hash=fingerprint(tokenizer),
        precision="",
        image_size=tokenizer.image_size,
        shape=tokenizer.latent_shape,
        num_images=len(images),
        shard_rows=shard_rows(tokenizer.latent_shape),
        unimm_version=package_version(),
    )


def _encode(tokenizer: ImageTokenizer, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Latents (N, C, h, w) float32 on the CPU."""
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tokenizer.encode_latents(pixels_NCHW.to(weight.device, weight.dtype)).float().cpu().contiguous()
