"""Codes and features of records with several images, or none: each image has a row, and each record finds its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_tokenizers import SIZES
from toys import Squares

from unimm.data.image import crop, look
from unimm.data.records import Question, Record, RecordImage, SeenImage
from unimm.data.stores.codes import CodedDataset
from unimm.data.stores.features import FeaturedDataset
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.vision.tower import VisionConfig, VisionTower
from unimm.precompute.codes import encode_dataset
from unimm.precompute.features import encode_features
from unimm.precompute.sharded_pass import PassConfig

NUM_IMAGES = (2, 0, 1, 3, 1)
QUIET = PassConfig(batch_size=3, quiet=True)


class Albums(Squares):
    """Conversations about so many pictures each."""

    def __init__(self, counts: tuple[int, ...] = NUM_IMAGES) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> Record:
        images = [Squares()[sum(self.counts[:index]) + place].image for place in range(self.counts[index])]
        others = tuple(RecordImage(image) for image in images[1:] if image is not None)
        first = images[0] if images else None
        return Record(f"album/{index}", first, questions=(Question("What?", "That."),), is_dialogue=True, others=others)


def test_codes_of_every_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SIZES).eval()
    stored = encode_dataset(tokenizer, Albums(), tmp_path / "codes", work=QUIET)
    assert len(stored) == sum(NUM_IMAGES) and stored.manifest.num_records == len(NUM_IMAGES)
    dataset = CodedDataset(Albums(), tmp_path / "codes")
    for index, count in enumerate(NUM_IMAGES):
        images = dataset[index].images
        assert len(images) == count
        for one in images:
            pixels = torch.from_numpy(crop(one.image, tokenizer.image_size))[None]
            assert one.codes["default"].tolist() == tokenizer.encode(pixels)[0].tolist()
    before = (tmp_path / "codes/codes.safetensors").stat().st_mtime_ns
    encode_dataset(tokenizer, Albums(), tmp_path / "codes", work=QUIET)
    assert (tmp_path / "codes/codes.safetensors").stat().st_mtime_ns == before, "what is there already is kept"
    with pytest.raises(ValueError, match="another image than record album/2 has now"):
        CodedDataset(Albums((2, 0, 2, 3, 1)), tmp_path / "codes")
    named = CodedDataset(CodedDataset(Albums(), tmp_path / "codes"), tmp_path / "codes", tokenizer="other")
    assert [sorted(one.codes) for one in named[0].images] == [["default", "other"]] * 2


def test_features_of_every_image(tmp_path: Path) -> None:
    tower = VisionTower(VisionConfig(image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2)).eval()
    encode_features(tower, Albums(), tmp_path / "features", dtype="float32", work=QUIET)
    dataset = FeaturedDataset(Albums(), tmp_path / "features")
    for index, count in enumerate(NUM_IMAGES):
        images = dataset[index].images
        assert len(images) == count and all(isinstance(one.image, SeenImage) for one in images)
        for one, plain in zip(images, Albums()[index].images, strict=True):
            assert isinstance(one.image, SeenImage) and np.array_equal(one.image.original(), plain.image)
            with torch.inference_mode():
                alone = tower(torch.from_numpy(look(plain.image, 16))[None])[0].numpy()
            assert np.abs(one.image.features() - alone).max() < 1e-5
    with pytest.raises(ValueError, match="another image than record"):
        FeaturedDataset(Albums((2, 0, 1, 2, 1)), tmp_path / "features")


def test_one_image_each_is_stored_as_ever(tmp_path: Path) -> None:
    """No word of several in the manifest, nor rows' ends beside the codes: an older unimm reads it."""
    stored = encode_dataset(ImageTokenizer(SIZES).eval(), Squares(), tmp_path / "codes", work=QUIET)
    assert stored.ends is None and "num_images" not in (tmp_path / "codes/manifest.json").read_text()
    record = replace(Squares()[0], image=None)
    assert record.num_images == 0 and record.images == ()
