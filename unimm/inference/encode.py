"""A data set's images to stored codes, once, so that training never runs the image tokenizer.

One dtype throughout, recorded beside the codes: an encoder in bf16 gives other codes than one in fp32.
"""

from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from unimm.data.codes import CodesManifest, StoredCodes, check_folder, save_codes
from unimm.data.image import crop, image_hash
from unimm.data.records import Dataset as Records
from unimm.models.image_tokenizer import ImageTokenizer
from unimm.models.tokenizer_folder import fingerprint


def encode_dataset(
    tokenizer: ImageTokenizer,
    dataset: Records,
    out: str | Path,
    *,
    name: str = "",
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "no",
    quiet: bool = False,
) -> StoredCodes:
    """Encode every image of a data set with the tokenizer, on its device and in its dtype, into the folder `out`.

    Args:
        name: of the data set, for the manifest; default: its class.
        num_workers: processes that prepare images ahead.
        precision: "no", or "bf16" for autocast of the convolutions (the quantizer stays fp32): faster, a few codes differ.
        quiet: no progress bar.

    Returns:
        The codes, opened.

    Raises:
        ValueError: the data set is empty, a record has no image, or `out` holds something else than codes.
    """
    if not len(dataset):
        raise ValueError("There is nothing to encode: the data set has no records.")
    first = dataset[0].image
    if first is None:
        raise ValueError(f"Record {dataset[0].key} has no image to encode.")
    check_folder(Path(out))
    weight = next(tokenizer.parameters())
    loader = DataLoader(_Images(dataset, tokenizer.image_size), batch_size=batch_size, num_workers=num_workers)
    was_training = tokenizer.training
    tokenizer.eval()
    codes = []
    with torch.inference_mode(), torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for pixels_NCHW in track(loader, description=f"encoding {len(dataset):,} images", disable=quiet):
            codes.append(tokenizer.encode(pixels_NCHW.to(weight.device, weight.dtype)).cpu().numpy())
    tokenizer.train(was_training)
    import unimm

    manifest = CodesManifest(
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
    save_codes(Path(out), np.concatenate(codes), manifest)
    return StoredCodes.open(out, expect_tokenizer_hash=manifest.tokenizer_hash)


class _Images(Dataset):
    """Pixels (3, size, size) by index."""

    def __init__(self, dataset: Records, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        record = self._dataset[index]
        if record.image is None:
            raise ValueError(f"Record {record.key} has no image to encode.")
        return crop(record.image, self._size)
