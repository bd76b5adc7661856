"""The PSNR of reconstructions is printed before the long work, with a picture, and a warning where it is too low."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from PIL import Image
from toys import Squares

from unimm.data.records import Record
from unimm.data.stores.codes import StoredCodes
from unimm.precompute import reconstructions
from unimm.precompute.codes import encode_dataset
from unimm.precompute.reconstructions import PICTURE, reconstruct_some
from unimm.precompute.sharded_pass import PassConfig, _Part


class Rounding(torch.nn.Module):
    """In the place of an image tokenizer: its codes are the pixels, and each comes back `shift` levels brighter."""

    image_size = 16

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shift = shift

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes + self.shift / 127.5

    def there_and_back(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decode(self.encode(pixels)), pixels


class Greys:
    """Grey pictures, the third one white: what is brighter than white is cut off. One cannot be read."""

    def __init__(self, num_records: int = 5) -> None:
        self.num_records = num_records

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        level = 255 if index == 2 else 100
        return Record(f"grey/{index}", b"nothing" if index == 3 else np.full((16, 16, 3), level, dtype=np.uint8))


def look_back(shift: float, num_records: int = 5) -> reconstructions.Reconstructions:
    some = reconstruct_some(Rounding(shift), Greys(num_records), "no")  # pyright: ignore[reportArgumentType]
    assert some is not None
    return some


def test_psnr_is_that_of_the_levels() -> None:
    """Of ten levels: 20 log10(255 / 10) = 28.13 dB; of an exact copy a large number, not an infinite one."""
    psnr = look_back(10).psnr
    assert sorted(psnr.tolist()) == pytest.approx([28.13, 28.13, 28.13, 68.13], abs=0.01)
    assert look_back(10, 500).psnr.shape == (reconstructions.NUM_IMAGES,)


def test_the_picture_shows_the_worst_first_below_its_original() -> None:
    pixels = np.asarray(look_back(20).picture)
    assert pixels.shape == (32, 4 * 16, 3)
    assert pixels[:16, :16].mean() == 100 and pixels[16:, :16].mean() == 120
    assert {int(pixels[0, 16 * place, 0]) for place in range(4)} == {100, 255}


def told(*psnr: float) -> str:
    return reconstructions.Reconstructions(np.array(psnr), Image.new("RGB", (1, 1))).tell("codes of photos", "x.png")


def test_a_warning_says_what_to_do_where_codes_cannot_show_the_images() -> None:
    assert told(28.0, 20.0) == "codes of photos: given back at 24.0 dB PSNR (mean of 2 images, the worst at 20.0); see x.png"
    assert told(4.9, 4.5).startswith("codes of photos: given back at 4.7 dB PSNR (mean of 2 images, the worst at 4.5)")
    assert "WARNING: 2 of 2 images are given back at under 15 dB" in told(4.9, 4.5)
    assert "unimm train-tokenizer images=image_folder" in told(4.9, 4.5)
    assert "unimm train-tokenizer +experiment=few_pictures/tokenizer images.folder=FOLDER out=TOKENIZER." in told(4.9, 4.5)
    assert "WARNING: 2 of 20 images" in told(*[30.0] * 18, 4.9, 4.5), "the others are well, and hide it in the mean"
    assert "WARNING" not in told(*[30.0] * 19, 4.5)


def test_where_it_is_slow_a_few_images_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstructions, "MOST_SECONDS", -1.0)
    assert len(look_back(10, 500).psnr) == reconstructions.AT_ONCE


def test_encode_tells_it_before_it_begins_and_keeps_it(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    see = _Part.see
    monkeypatch.setattr(_Part, "see", lambda self, *words: (told.append(capsys.readouterr().err), see(self, *words)))
    tokenizer = tiny_image_tokenizer()
    encode_dataset(tokenizer, Squares(), tmp_path / "codes", name="squares")
    assert "codes of squares: given back at " in told[0] and "dB PSNR (mean of 12 images" in told[0]
    assert Image.open(tmp_path / "codes" / PICTURE).size == (8 * 16, 2 * 16)
    manifest = StoredCodes.open(tmp_path / "codes").manifest
    some = reconstruct_some(tokenizer, Squares(), "no")
    assert some is not None and manifest.psnr_images == 12
    assert (manifest.psnr, manifest.psnr_worst) == pytest.approx((some.psnr.mean(), some.psnr.min()), abs=0.01)
    capsys.readouterr()
    encode_dataset(tokenizer, Squares(), tmp_path / "codes", name="squares")
    again = capsys.readouterr().err
    assert (
        "a sample and back" not in again and "it is kept" in again and StoredCodes.open(tmp_path / "codes").manifest == manifest
    )
    assert manifest.psnr is not None and manifest.psnr < 15
    end = (
        f"WARNING: {tmp_path}/codes: images are given back at only {manifest.psnr:.1f} dB PSNR, see {tmp_path}/codes/{PICTURE}."
    )
    assert again.splitlines()[-1] == end, "said again in the end, where one looks"
    content = json.loads((tmp_path / "codes/manifest.json").read_text())
    old = {key: value for key, value in content.items() if not key.startswith("psnr")}
    (tmp_path / "codes/manifest.json").write_text(json.dumps(old))
    assert StoredCodes.open(tmp_path / "codes").manifest.psnr is None, "codes of an older unimm say nothing of it"
    encode_dataset(tokenizer, Squares(), tmp_path / "codes", name="squares", work=PassConfig(quiet=True))
