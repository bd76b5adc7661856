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

from unimm.data.bad_records import BAD_RECORDS
from unimm.data.image import crop
from unimm.data.records import Dataset
from unimm.data.stores.latents import LatentsManifest, StoredLatents, finish_latents, shard_name, shard_rows, stored_files
from unimm.data.stores.tensor_store import MANIFEST
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.precompute.bad_images import list_bad, noted_bad
from unimm.precompute.codes import describe_images, find_images
from unimm.precompute.pass_precision import precision_name, settle_precision
from unimm.precompute.reconstructions import PICTURE, Reconstructions, reconstruct_some
from unimm.precompute.sharded_pass import Job, PassConfig, begin_pass, end_pass, evaluating, known_images, make_parts


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
            manifest = replace(manifest, **some.numbers())
        finish_latents(unfinished, replace(manifest, num_bad=len(bad)), ends)
    end_pass(out, unfinished, is_new, work)
    return StoredLatents.open(out, tokenizer_hash=manifest.tokenizer_hash)


def _describe(tokenizer: ImageTokenizer, dataset: Dataset, images: Dataset, name: str) -> LatentsManifest:
    """What is to be stored; the precision is not settled yet. images: of all records, one by one."""
    if not tokenizer.is_continuous:
        raise ValueError("This image tokenizer has codes, no latents: data of stored codes is encoded by it.")
    return LatentsManifest(
        **describe_images(tokenizer, dataset, images, name),
        shape=tokenizer.latent_shape,
        num_images=len(images),
        shard_rows=shard_rows(tokenizer.latent_shape),
    )


def _encode(tokenizer: ImageTokenizer, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Latents (N, C, h, w) float32 on the CPU."""
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tokenizer.encode_latents(pixels_NCHW.to(weight.device, weight.dtype)).float().cpu().contiguous()
