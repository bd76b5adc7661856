"""Guidance of another form than classifier-free: an image is edited with one scale for the image and one for the text."""

import torch
from PIL import Image

from unimm import Engine, Kind, Segment, Sequence
from unimm.inference.decode.request import Branch
from unimm.inference.decode.sampling import Sampling


def edit(
    engine: Engine, image: Image.Image, instruction: str, image_scale: float = 1.5, text_scale: float = 5.0, seed: int = 0
) -> Image.Image:
    """Away from no condition towards the image, and from there towards the text (InstructPix2Pix, arXiv 2211.09800)."""
    special = engine.tokenizer.special
    prompt = (
        Segment.text([special.bos]),
        *engine.template.look(image),
        Segment.text(engine.tokenizer.encode(instruction), condition="text"),
        Segment.text([special.begin_of_image]),
        Segment.blank(Kind.CODES, engine.image_tokenizer.num_codes),
    )
    branches = (
        Branch(weight=text_scale),
        Branch(frozenset({"text"}), image_scale - text_scale),
        Branch(frozenset({"text", "image"}), 1.0 - image_scale),
    )
    (filled,) = engine.fill([Sequence(prompt)], Sampling(temperature=1.0, seed=seed), branches=branches)
    return engine.decode_codes(torch.tensor(filled.segments[-1].content_ids))[0]
