"""What users give, checked and put in order: texts, stop strings, images with their questions, elements of sequences."""

from typing import Any

import torch

from unimm.data.image_forms import read_once
from unimm.data.records import ImageLike
from unimm.data.video.sources import is_video, open_video
from unimm.models.unified import UnifiedModel
from unimm.runtime.number_checks import shorten, whole_number
from unimm.sequence import Sequence

MAX_PROMPT_CHARACTERS = 50_000
"""Longer texts are refused before they reach the tokenizer: no model here could read them."""


def check_text(text: Any, name: str) -> None:
    """ValueError: the text is no string, empty, or longer than anything here could read. name: what to call it."""
    if not isinstance(text, str):
        raise ValueError(f"A {name} is a string, not {type(text).__name__}.")
    if not text.strip():
        raise ValueError(f"The {name} is empty: say something.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"The {name} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read.")


def read_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple. ValueError: one of them is empty or none."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for one in strings:
        if not isinstance(one, str) or not one:
            raise ValueError(f"stop is a string or a list of strings, none of them empty, not {shorten(stop)}.")
    return strings


def pair(image: ImageLike | tuple | list, question: str | list[str]) -> tuple[list, list[str], bool]:
    """Images (or tuples of several) and questions as two lists of one length, and whether a list goes back."""
    is_list = isinstance(image, list) or isinstance(question, list)
    images = [read_once(one) for one in (image if isinstance(image, list) else [image])]  # a file may go with many questions
    questions = question if isinstance(question, list) else [question]
    count = max(len(images), len(questions)) if images and questions else 0
    images = images * count if len(images) == 1 else images
    questions = questions * count if len(questions) == 1 else questions
    if len(images) != len(questions) and count:
        raise ValueError(f"{len(images)} images do not pair with {len(questions)} questions.")
    return images[:count], questions[:count], is_list


def image_or_video(image: ImageLike, num_frames: int | None = None) -> ImageLike:
    """A video as a `Video`: what is one by its name or content, and with `num_frames` anything that can be one, such as an
    animation or a folder of frames; an image as it is."""
    if num_frames is None and not is_video(image):
        return image
    return open_video(image, num_frames=None if num_frames is None else whole_number("num_frames", num_frames, 1))


def check_elements(sequence: Sequence, model: UnifiedModel, expected: tuple[int, ...] = ()) -> None:
    """ValueError: an element is none that the model knows, also of those that are `expected` of the open segment. Computed
    together with others it would make theirs fail, too."""
    for segment in sequence.segments:
        ports = model.predicted_ports if segment.is_open else model.ports
        if segment.kind not in ports:
            known = ", ".join(kind.name for kind in ports)
            what = "fills in" if segment.is_open else "reads"
            raise ValueError(f"The model {what} {known}, not {segment.kind.name}.")
        ports[segment.kind].check(segment)
        port = model.vocabulary_ports.get(segment.kind)
        if segment.is_open and expected and (port is None or not 0 <= min(expected) <= max(expected) < port.vocabulary_size):
            most = "none can be expected" if port is None else f"expected ones lie in [0, {port.vocabulary_size})"
            raise ValueError(f"Of {segment.kind.name} {most}, not {min(expected)} to {max(expected)}.")


def check_weights(own: dict[str, torch.nn.Parameter], new: dict[str, torch.Tensor]) -> None:
    """ValueError: a new tensor has no parameter of its name and shape."""
    for name, tensor in new.items():
        if name not in own or own[name].shape != tensor.shape:
            expected = f"{tuple(own[name].shape)}" if name in own else "no such parameter"
            raise ValueError(f"The weights of {name!r} are {tuple(tensor.shape)}, but the model has {expected}.")
