"""Images and texts as vectors of one space, and what follows from them: how alike they are, zero-shot classes.

Two towers, one that looks and one that reads, give unit vectors of D numbers; an image and a text that belong together have a
large inner product (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343). `Towers` is what such a pair offers, whoever made it:
the contrastive heads of a model folder of ours here, checkpoints of other libraries in `unimm.retrieval.towers`.
`EmbeddingCalls` are the calls that users have of it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimm.checkpoints.fingerprint import model_fingerprint
from unimm.data.image_forms import read_once
from unimm.data.records import ImageLike
from unimm.inference.input_validation import check_text

AT_ONCE = 64
"""Images or texts in one pass."""

TEMPLATES = ("{}", "a picture of {}", "The picture shows {}.")
"""What is said of a class where the caller does not say: an ensemble, as in CLIP §3.1.4."""

Prepared = dict[str, Tensor]
"""One image as an image tower reads it, by the names of its arguments, on the CPU."""


class Towers(ABC):
    """An image tower and a text tower of one space.

    dim: numbers a vector. logit_scale, logit_bias: what an inner product is multiplied by, and what is added, before it is a
    logit. A bias is there where each pair was learned by itself (a sigmoid, as SigLIP), and None where one of a batch was
    chosen (a softmax, as CLIP).
    """

    dim: int
    logit_scale: float
    logit_bias: float | None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over what decides what the vectors are; the same in float32 and bfloat16."""

    @abstractmethod
    def prepare(self, image: ImageLike) -> Prepared:
        """An image, ready for `embed_prepared`. From any thread. ValueError: it is no image that can be read."""

    @abstractmethod
    def embed_prepared(self, images: list[Prepared]) -> Tensor:
        """Unit vectors (n, D) float32 on the CPU; n is at least 1, and small enough for one pass."""

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (n, D) float32 on the CPU, as `embed_prepared`. ValueError: a text cannot be read."""


class EmbeddingCalls(ABC):
    """Images and texts in, vectors and probabilities of classes out."""

    @property
    @abstractmethod
    def towers(self) -> Towers:
        """The two towers. ValueError: the model has none."""

    def embed_images(self, images: ImageLike | list) -> np.ndarray:
        """Images -> unit vectors (N, D) float32; of a single image (D,). All forms of an image: `unimm.data.image_forms`.

        Raises:
            ValueError: the model has no towers, or an image cannot be read.
        """
        towers = self.towers
        given = images if isinstance(images, list) else [images]
        parts = [torch.empty(0, towers.dim)]
        for start in range(0, len(given), AT_ONCE):
            parts.append(towers.embed_prepared([towers.prepare(one) for one in given[start : start + AT_ONCE]]))
        vectors = torch.cat(parts).numpy()
        return vectors if isinstance(images, list) else vectors[0]

    def embed_texts(self, texts: str | list[str]) -> np.ndarray:
        """Texts -> unit vectors (N, D) float32; of a single text (D,). What is longer than the tower reads loses its end.

        Raises:
            ValueError: the model has no towers, or a text is empty or none.
        """
        vectors = embed_all(self.towers, texts if isinstance(texts, list) else [texts]).numpy()
        return vectors if isinstance(texts, list) else vectors[0]

    def classify(
        self, image: ImageLike | list, labels: list[str], templates: str | list[str] | tuple[str, ...] | None = None
    ) -> Any:
        """Which of these labels an image shows, without having been trained on them (zero-shot).

        Args:
            labels: phrases as they stand in a sentence: "a red circle".
            templates: sentences with {} where a label stands; the vectors of all of them are averaged, as in CLIP. Default:
                `TEMPLATES`.

        Returns:
            label -> probability, in the order of the labels; a list of such for a list of images. They add up to 1 where the
            towers learned to choose among texts (CLIP); where each pair was learned by itself (SigLIP) they need not, and none
            of them may be large.

        Raises:
            ValueError: the model has no towers, there are no labels, one is there twice, or a template has not one {}.
        """
        names, frames = check_labels(labels), check_templates(TEMPLATES if templates is None else templates)
        towers = self.towers
        images = [read_once(one) for one in (image if isinstance(image, list) else [image])]
        vectors_ND = torch.from_numpy(self.embed_images(images))
        logits_NL = towers.logit_scale * vectors_ND @ class_vectors(towers, names, frames).T
        shares_NL = logits_NL.softmax(1) if towers.logit_bias is None else (logits_NL + towers.logit_bias).sigmoid()
        found = [dict(zip(names, row, strict=True)) for row in shares_NL.tolist()]
        return found if isinstance(image, list) else found[0]


def embed_all(towers: Towers, texts: list[str]) -> Tensor:
    """Any number of texts -> unit vectors (N, D) float32. ValueError: a text is empty or none."""
    for text in texts:
        check_text(text, "text")
    parts = [towers.embed_texts(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)]
    return torch.cat([torch.empty(0, towers.dim), *parts])


def class_vectors(towers: Towers, labels: list[str], templates: list[str]) -> Tensor:
    """One unit vector a label, (L, D): the mean over the templates, made one long again."""
    texts = [template.replace("{}", label) for label in labels for template in templates]
    mean_LD = embed_all(towers, texts).unflatten(0, (len(labels), len(templates))).mean(1)
    return torch.nn.functional.normalize(mean_LD, dim=1)


def check_labels(labels: Any) -> list[str]:
    """The labels as a list. ValueError: there are none, one is no text or empty, or one is there twice."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"Labels are a list of strings, not {type(labels).__name__}.")
    names = list(labels)
    if not names:
        raise ValueError("There are no labels to choose among: name at least one.")
    for name in names:
        check_text(name, "label")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"The label '{twice}' is there twice: name each of them once.")
    return names


def check_templates(templates: str | Iterable[str]) -> list[str]:
    """The templates as a list. ValueError: there are none, or one has not exactly one {}."""
    frames = [templates] if isinstance(templates, str) else list(templates)
    if not frames:
        raise ValueError("There are no templates: name one, such as 'a photo of {}', or leave them out.")
    for frame in frames:
        if not isinstance(frame, str) or frame.count("{}") != 1:
            raise ValueError(f"A template has one {{}}, where a label stands, not {frame!r}.")
    return frames


def towers_fingerprint(weights: Iterable[tuple[str, Tensor]], sizes: dict[str, Any]) -> str:
    """sha256 over weights by their names, in bfloat16 so that it is the same in float32, and over what is done before them."""
    hashed = model_fingerprint((name, one.detach().to(torch.bfloat16)) for name, one in weights)
    return hashlib.sha256((hashed + json.dumps(sizes, sort_keys=True, default=str)).encode()).hexdigest()
