"""Embedding and zero-shot classes, with towers that are made by hand: what is computed of vectors, and what is refused."""

from typing import Any

import numpy as np
import pytest
from colour_towers import ColourTowers, Embedder, plain
from torch.nn.functional import normalize

from unimm.inference import embedding
from unimm.inference.engine import Engine


def test_lists_in_arrays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes of a few, in order; one alone is one vector; none is none."""
    monkeypatch.setattr(embedding, "AT_ONCE", 2)
    towers = ColourTowers()
    images = Embedder(towers).embed_images([plain("red"), plain("blue"), np.zeros((4, 4, 3), np.uint8)])
    assert towers.passes == [2, 1] and images.dtype == np.float32
    assert images.shape == (3, 4) and np.allclose(np.linalg.norm(images, axis=1), 1)
    assert images.argmax(1).tolist()[:2] == [0, 2]
    assert np.array_equal(Embedder(towers).embed_images(plain("red")), images[0])
    assert Embedder(towers).embed_images([]).shape == (0, 4)
    assert Embedder(towers).embed_texts("blue").shape == (4,)
    assert Embedder(towers).embed_texts(["red", "blue"]).shape == (2, 4)


def test_classes_by_a_softmax() -> None:
    shares = Embedder(ColourTowers()).classify(plain("red"), ["blue", "red"])
    assert list(shares) == ["blue", "red"] and shares["red"] > 0.99
    assert sum(shares.values()) == pytest.approx(1)
    several = Embedder(ColourTowers()).classify([plain("red"), plain("blue")], ["blue", "red"])
    assert [max(one, key=one.get) for one in several] == ["red", "blue"]


def test_where_pairs_were_learned_each_stands_for_itself() -> None:
    """As with SigLIP: of what an image does not show, no label need be likely."""
    embedder = Embedder(ColourTowers(logit_bias=-10.0))
    assert max(embedder.classify(plain("red"), ["blue", "green"]).values()) < 0.01
    assert embedder.classify(plain("red"), ["red"])["red"] > 0.99


def test_templates_are_averaged_as_vectors() -> None:
    towers = ColourTowers()
    found = Embedder(towers).classify(plain("red"), ["red", "blue"], ["{}", "a photo of {}"])
    texts = towers.embed_texts(["red", "a photo of red", "blue", "a photo of blue"]).unflatten(0, (2, 2))
    classes = normalize(texts.mean(1), dim=1)
    logits = 20.0 * towers.embed_prepared([towers.prepare(plain("red"))]) @ classes.T
    assert list(found.values()) == pytest.approx(logits.softmax(1)[0].tolist())
    assert Embedder(towers).classify(plain("red"), ["red"], "{}") == {"red": 1.0}


@pytest.mark.parametrize(
    ("labels", "templates", "said"),
    [
        ([], None, "no labels"),
        (["a", "b", "a"], None, "'a' is there twice"),
        ("a red circle", None, "list of strings, not str"),
        (["a", " "], None, "label is empty"),
        (["a", 3], None, "label is a string"),
        (["a"], [], "no templates"),
        (["a"], ["photo"], "has one {}"),
        (["a"], ["{} {}"], "has one {}"),
    ],
)
def test_what_is_no_choice_is_refused(labels: Any, templates: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Embedder(ColourTowers()).classify(plain("red"), labels, templates)


def test_bad_input_is_one_sentence(tiny_engine: Engine) -> None:
    embedder = Embedder(ColourTowers())
    with pytest.raises(ValueError, match="no such file"):
        embedder.embed_images(["nowhere.png"])
    with pytest.raises(ValueError, match="text is empty"):
        embedder.embed_texts(["a", ""])
    for call in (lambda: tiny_engine.embed_texts("a"), lambda: tiny_engine.classify(plain("red"), ["a"])):
        with pytest.raises(ValueError, match="no contrastive heads"):
            call()
