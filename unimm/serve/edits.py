"""/v1/images/edits: images of which a part is drawn anew. Files are read as images or not at all; their names are nothing."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from unimm.data.image import transparent_part
from unimm.serve.drawing import DrawingOrder
from unimm.serve.errors import ApiError
from unimm.serve.images import answer
from unimm.serve.media import aread_image
from unimm.serve.models import check_model
from unimm.serve.protocol import EditRequest
from unimm.serve.service import Service, service_of

router = APIRouter(tags=["images"])


@router.post("/v1/images/edits", summary="Draw a part of an image anew")
async def edit(request: Request, body: Annotated[EditRequest, Form(media_type="multipart/form-data")]) -> Response:
    """The image, with what the mask leaves open drawn after the prompt; the rest of it stays. The mask is a PNG of the image's
    size, transparent where to draw; without one, the image itself is transparent there."""
    service = service_of(request)
    check_model(service, body.model)
    order = DrawingOrder(service, body, body.prompt, "png", body.partial_images if body.stream else 0)
    image, mask = await _read_uploads(body, service)
    run = service.run(request, "image", order.num_images, order.draw(order.inpainting(image, mask)))
    return await answer(service, body, order, run, "image_edit")


async def _read_uploads(body: EditRequest, service: Service) -> tuple[bytes, bytes | None]:
    """The image and its mask as files, both decoded once to see that they are images.

    Raises:
        ApiError: 400, there is not one image, one of the two is none, or nothing says where to draw.
    """
    images = body.image + body.images
    if len(images) != 1:
        raise ApiError(400, f"Send one image to change, not {len(images)}.", param="image")
    image, mask = await images[0].read(), None if body.mask is None else await body.mask.read()
    for file in (image, mask):
        if file is not None:
            await aread_image(file, service.settings)
    if mask is None and not (await asyncio.to_thread(transparent_part, image)).any():
        sentence = (
            "The model does not change images by instruction alone: send a mask, a PNG of the image's size that is transparent "
            "where to draw."
        )
        raise ApiError(400, sentence, param="mask", code="unsupported")
    return image, mask
