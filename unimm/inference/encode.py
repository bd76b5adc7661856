"""A data set's images to stored codes, once, so that training never runs the image tokenizer.

One dtype throughout, recorded beside the codes: an encoder in bf16 gives other codes than one in fp32. Processes may share the
work, and what was interrupted goes on where it stopped (`unimm.inference.in_parts`).
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from unimm.data.codes import CodesManifest, StoredCodes, is_stored, load_part, save_codes, unfinished_codes
from unimm.data.image import crop, image_hash
from unimm.data.records import Dataset as Records
from unimm.inference.in_parts import Work, evaluating, say_kept, see_in_parts
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.tokenizer_folder import fingerprint

PART_RECORDS = 4096
"""Records whose codes are computed at a time, and lost at most."""


def encode_dataset(
    tokenizer: ImageTokenizer,
    dataset: Records,
    out: str | Path,
    *,
    name: str = "",
    precision: str = "no",
    work: Work | None = None,
) -> StoredCodes:
    """Encode every image of a data set with the tokenizer, on its device and in its dtype, into the folder `out`.

    What is there already of the same images by the same tokenizer is kept, finished or not.

    Args:
        name: of the data set, for the manifest; default: its class.
        precision: "no", or "bf16" for autocast of the convolutions (the quantizer stays fp32): faster, a few codes differ.
        work: how it is gone about, and by how many processes.

    Returns:
        The codes, opened.

    Raises:
        ValueError: the data set is empty, a record has no image, `out` holds something else than codes, or others were begun
            there.
    """
    work, out = work or Work(), Path(out)
    ranks = work.ranks
    manifest = _describe(tokenizer, dataset, name, precision)
    unfinished, is_there = unfinished_codes(out, manifest, PART_RECORDS), is_stored(out, manifest)
    ranks.wait()  # nobody begins before all have looked
    if is_there:
        say_kept(unfinished, work)
        return StoredCodes.open(out, expect_tokenizer_hash=manifest.tokenizer_hash)
    if ranks.number == 0:
        unfinished.begin()
    ranks.wait()

    def see(pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return _encode(tokenizer, pixels_NCHW, precision).to(torch.int32).cpu()

    pixels = _Pixels(dataset, tokenizer.image_size)
    with evaluating(tokenizer):
        num_parts = see_in_parts(see, pixels, np.arange(len(dataset)), PART_RECORDS, unfinished, "codes", work)
    ranks.wait()
    if ranks.number == 0:
        save_codes(out, np.concatenate([load_part(unfinished, number) for number in range(num_parts)]), manifest)
        unfinished.drop()
    ranks.wait()
    return StoredCodes.open(out, expect_tokenizer_hash=manifest.tokenizer_hash)


def _describe(tokenizer: ImageTokenizer, dataset: Records, name: str, precision: str) -> CodesManifest:
    """What is to be stored."""
    import unimm

    if not len(dataset):
        raise ValueError("There is nothing to encode: the data set has no records.")
    first, weight = dataset[0].image, next(tokenizer.parameters())
    if first is None:
        raise ValueError(f"Record {dataset[0].key} has no image to encode.")
    return CodesManifest(
        num_records=len(dataset),
        dataset=name or type(dataset).__name__,
        first_key=dataset[0].key,
        last_key=dataset[len(dataset) - 1].key,
        first_image=image_hash(first),
        tokenizer_hash=fingerprint(tokenizer),
        precision=precision if precision != "no" else str(weight.dtype).removeprefix("torch."),
        image_size=tokenizer.image_size,
        num_codes=tokenizer.num_codes,
        codebook_size=tokenizer.codebook_size,
        unimm_version=unimm.__version__,
    )


def _encode(tokenizer: ImageTokenizer, pixels_NCHW: torch.Tensor, precision: str) -> torch.Tensor:
    """Codes (N, num_codes)."""
    weight = next(tokenizer.parameters())
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return tokenizer.encode(pixels_NCHW.to(weight.device, weight.dtype))


class _Pixels(Dataset):
    """Pixels (3, size, size) by index."""

    def __init__(self, dataset: Records, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __getitem__(self, index: int) -> np.ndarray:
        record = self._dataset[index]
        if record.image is None:
            raise ValueError(f"Record {record.key} has no image to encode.")
        return crop(record.image, self._size)
