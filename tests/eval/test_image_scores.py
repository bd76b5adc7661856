"""FID, CLIPScore and reconstructions: against the formulas, with networks of random weights in place of downloads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from stand_in_networks import Clip, Features, clip_processor
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from unimm.eval.image_networks import open_inception
from unimm.eval.image_scores import (
    SquareImages,
    read_captions,
    score_images,
    score_reconstructions,
    to_tensor,
)
from unimm.inference.engine import Engine

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twenty bright images, and twenty-four others, some oblong."""
    top = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for name, count, low in (("fake", 20, 60), ("real", 24, 0)):
        (top / name).mkdir()
        for number in range(count):
            shape = (32, 32 if name == "fake" or number % 2 else 40, 3)
            colour = noise.integers(low, 256, 3)
            array = (colour * noise.uniform(0.6, 1, shape)).astype(np.uint8)
            Image.fromarray(array).save(top / name / f"{number:03}.png")
    return top / "fake", top / "real"


def test_fid_is_the_frechet_distance(folders: tuple[Path, Path]) -> None:
    fake, real = SquareImages(folders[0]), SquareImages(folders[1], 32)
    assert fake.size == 32
    found = score_images(fake, real, None, Features(), None, CPU, batch=7)
    points = [
        torch.cat([Features()(to_tensor(part)) for part in source.batches(50)]).double().numpy() for source in (fake, real)
    ]
    means, spreads = [one.mean(0) for one in points], [np.cov(one, rowvar=False) for one in points]
    root = np.real(sqrtm(spreads[0] @ spreads[1]))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    (fid,) = found.scores
    assert fid.value == pytest.approx(expected, rel=1e-4) and fid.error is None and not fid.higher_is_better
    assert found.protocol["num_images"] == 20 and found.protocol["num_reference"] == 24 and found.protocol["size"] == 32
    assert "biased" in found.notes[0]
    same = score_images(fake, SquareImages(folders[0]), None, Features(), None, CPU)
    assert same.scores[0].value == pytest.approx(0, abs=1e-4)
    json.dumps(found.as_json(), allow_nan=False)


def test_clip_score_is_the_mean_cosine(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fake = SquareImages(folders[0])
    lines = [{"file": key, "caption": "a" * (30 + number)} for number, key in enumerate(fake.keys())]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    captions = read_captions(tmp_path / "captions.jsonl")
    found = score_images(fake, None, captions, None, lambda: (Clip(), clip_processor), CPU, batch=6)
    images = torch.cat([to_tensor(part).float().mean((2, 3)) for part in fake.batches(50)])
    texts = torch.tensor([[30.0 + number, 50, 90] for number in range(20)])
    cosines = 100 * nn.functional.cosine_similarity(images, texts)
    (score,) = found.scores
    assert score.value == pytest.approx(float(cosines.mean()), rel=1e-5) and score.count == 20
    assert score.error is not None and 0.2 < score.error / float(cosines.std() / 20**0.5) < 3
    with pytest.raises(ValueError, match=r"000.png has no caption, and 1 others have none"):
        score_images(fake, None, dict(list(captions.items())[2:]), None, lambda: (Clip(), clip_processor), CPU)


def test_reconstructions_are_scored_image_by_image(tiny_engine: Engine, folders: tuple[Path, Path]) -> None:
    images = SquareImages(folders[1], 16)

    class Distance(nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).abs().mean((1, 2, 3), keepdim=True)

    found = score_reconstructions(tiny_engine, images, Features(), Distance(), batch=5)
    originals = np.concatenate([*images.batches(50)])
    codes = tiny_engine.encode_image(list(originals))
    made = np.stack([np.asarray(image) for image in tiny_engine.decode_codes(codes)])
    scores = {score.name: score for score in found.scores}
    assert [*scores] == ["rfid", "psnr", "ssim", "lpips"] and all(score.count == 24 for score in found.scores)
    pairs = zip(to_tensor(made).float(), to_tensor(originals).float(), strict=True)
    each = [peak_signal_noise_ratio(one, other, 255.0) for one, other in pairs]
    assert scores["psnr"].value == pytest.approx(float(torch.stack(each).mean()), abs=1e-3)
    expected = np.abs(made.astype(float) - originals).mean() / 127.5
    assert scores["lpips"].value == pytest.approx(expected, rel=1e-4) and not scores["lpips"].higher_is_better
    assert found.measures["codebook_usage"] == pytest.approx(len(codes.unique()) / 32)


def test_what_is_missing_is_said_in_a_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of 40 x 32: say with --size"):
        SquareImages(folders[1])
    with pytest.raises(ValueError, match="holds 1 image: a score needs two"):
        SquareImages(folders[1], 16, limit=1)
    pytest.importorskip("torch_fidelity")
    with pytest.raises(ValueError, match="is not there: download weights-inception-2015-12-05"):
        open_inception(tmp_path / "nowhere.pth")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold Inception's weights"):
        open_inception(tmp_path / "other.pth")
