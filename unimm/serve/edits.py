"""/v1/images/edits: images changed by an instruction, or of which a part is drawn anew.

Files are read as images or not at all; their names are nothing.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from unimm.data.image import transparent_part
from unimm.inference.windows_of_images import Sides
from unimm.serve.drawing import DrawingOrder
from unimm.serve.errors import ApiError
from unimm.serve.images import answer
from unimm.serve.media import aread_image
from unimm.serve.models import check_model
from unimm.serve.painting import check_size, mark_image
from unimm.serve.protocol import EditRequest
from unimm.serve.service import Service, service_of

router = APIRouter(tags=["images"])


@router.post("/v1/images/edits", summary="Change an image, draw a part of it anew, or what is around it")
async def edit(request: Request, body: Annotated[EditRequest, Form(media_type="multipart/form-data")]) -> Response:
    """The image changed as the prompt says, by models that were taught to edit. With a mask, a PNG of the image's size that is
    transparent where to draw, or where the image itself is transparent, that part is drawn after the prompt, and the rest
    stays. With `left`, `right`, `top` or `bottom` the image is put on a larger canvas, and what is new is drawn."""
    service = service_of(request)
    check_model(service, body.model)
    order = DrawingOrder(service, body, body.prompt, "png", body.partial_images if body.stream else 0)
    image, mask, is_instruction = await _read_uploads(body, service)
    if is_instruction:
        source = await aread_image(image, service.settings)
        if order.keeps_size:
            check_size(*source.size)
        run = service.run(request, "image", order.num_images, order.draw(order.editing(source, of_instructions(body))))
        return await answer(service, body, order, run, "image_edit")
    square, most = None if order.keeps_size else service.engine.image_tokenizer.image_size, service.settings.max_images_out
    marked = await asyncio.to_thread(mark_image, image, mask, _sides(body), order.num_images, most, square)
    count = order.num_images * len(marked.windows)
    run = service.run(request, "image", count, order.draw(order.painting(marked.picture, marked.is_marked)))
    return await answer(service, body, order, run, "image_edit")


async def _read_uploads(body: EditRequest, service: Service) -> tuple[bytes, bytes | None, bool]:
    """The image and its mask as files, both decoded once to see that they are images; and whether the prompt alone says what to
    change.

    Raises:
        ApiError: 400, there is not one image, one of the two is none, nothing says where to draw to a model that does not edit
            by instruction, or fields do not go together.
    """
    images = body.image + body.images
    if len(images) != 1:
        raise ApiError(400, f"Send one image to change, not {len(images)}.", param="image")
    image, mask = await images[0].read(), None if body.mask is None else await body.mask.read()
    for file in (image, mask):
        if file is not None:
            await aread_image(file, service.settings)
    if mask is not None and any(_sides(body)):
        raise ApiError(400, "Send a mask, or by how much the image grows: one after the other.", param="mask")
    says_where = mask is not None or any(_sides(body)) or (await asyncio.to_thread(transparent_part, image)).any()
    for name in of_instructions(body) if says_where else ():
        sentence = f"{name} is for edits by instruction alone: leave it out where a part is drawn."
        raise ApiError(400, sentence, param=name)
    if not says_where and not service.engine.prompt_format.edits:
        sentence = (
            "The model does not change images by instruction alone: send a mask, a PNG of the image's size that is transparent "
            "where to draw."
        )
        raise ApiError(400, sentence, param="mask", code="unsupported")
    return image, mask, not says_where


def of_instructions(body: EditRequest) -> dict[str, float]:
    """What the request says of edits by instruction alone."""
    names = ("image_guidance_scale", "source_bias")
    return {name: value for name in names if (value := getattr(body, name)) is not None}


def _sides(body: EditRequest) -> Sides:
    return Sides(body.left, body.right, body.top, body.bottom)
