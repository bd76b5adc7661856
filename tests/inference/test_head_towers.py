"""The contrastive heads of a model folder: vectors are theirs, the calls are the engine's, and the folder carries them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer
from PIL import Image

import unimm
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.image import look
from unimm.data.records import ImageLike
from unimm.inference.engine import Engine
from unimm.models.contrastive import ContrastiveConfig, pad_texts
from unimm.retrieval.index import Index
from unimm.retrieval.indexing import build_index
from unimm.retrieval.sources import open_images


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = tiny_text_tokenizer()
    sizes = {"vocabulary_size": len(tokenizer), "vision_width": 32, "vision_heads": 2}
    torch.manual_seed(0)
    heads = ContrastiveConfig(dim=8, text_width=16, text_layers=1, text_heads=2, text_positions=30, logit_bias=-1.0, **sizes)
    bundle = ModelBundle(tiny_model(len(tokenizer)), {DEFAULT: tiny_image_tokenizer()}, tokenizer)
    return Engine(ModelBundle(bundle.model, bundle.image_tokenizers, tokenizer, heads={"contrastive": heads.build().eval()}))


@pytest.fixture
def images() -> list[ImageLike]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((16, 16), (20, 9))]


def test_vectors_are_those_of_the_heads(engine: Engine, images: list[ImageLike]) -> None:
    """Prepared as the unified model looks, read as texts were in training, and cut where the text tower ends."""
    heads, texts = engine.bundle.contrastive, ["a red circle", "一个圆形", "a long text of many words " * 20]
    assert heads is not None
    with torch.inference_mode():
        seen = heads.embed_images(torch.from_numpy(np.stack([look(image, 16) for image in images])))
        read = heads.embed_texts(*pad_texts([engine.bundle.tokenizer.sentence(text, 30) for text in texts]))
    assert np.abs(engine.embed_images(images) - seen.numpy()).max() < 1e-6
    assert np.abs(engine.embed_texts(texts) - read.numpy()).max() < 1e-6
    shares = engine.classify(images, texts[:2], "{}")
    logits = heads.logit_scale.detach().exp() * seen @ read[:2].T - 1.0
    assert np.abs(np.array([list(one.values()) for one in shares]) - logits.sigmoid().numpy()).max() < 1e-5


def test_the_folder_carries_them(engine: Engine, images: list[ImageLike], tmp_path: Path) -> None:
    """An index that was made before and after are of one model; not after a step of training."""
    engine.save(tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(images):
        assert isinstance(image, Image.Image)
        image.save(photos / f"{number}.png")
    name = str(tmp_path / "model")
    build_index(engine, open_images(photos), tmp_path / "index", model=name, source=str(photos))
    opened = unimm.load_towers(name, "cpu")
    assert opened.towers.fingerprint == engine.towers.fingerprint
    assert opened.towers.fingerprint == unimm.load_towers(name, "cpu", "bfloat16").towers.fingerprint
    (hit,) = Index.open(tmp_path / "index").search(image=images[1], k=1)
    assert hit.key == "1.png" and hit.score == pytest.approx(1.0, abs=1e-3)
    tower = opened.towers._tower  # pyright: ignore
    with torch.no_grad():
        next(tower.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="is an index of the model"):
        Index.open(tmp_path / "index", opened)
