"""/v1/images/generations: drawings from a prompt, with previews while they are made."""

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from unimm.serve.drawing import DrawingOrder, Pictures
from unimm.serve.models import check_model
from unimm.serve.pictures import Encoding
from unimm.serve.protocol import ImageRequest
from unimm.serve.service import Run, Service, service_of
from unimm.serve.streams import respond

router = APIRouter(tags=["images"])


@router.post("/v1/images/generations", summary="Draw a prompt")
async def generate(request: Request, body: ImageRequest) -> Response:
    """Images in base64; with `stream`, previews and then the images as server-sent events."""
    service = service_of(request)
    check_model(service, body.model)
    order = DrawingOrder(service, body, body.prompt, "png", body.partial_images if body.stream else 0, any_form=True)
    run = service.run(request, "image", order.num_images, order.draw(order.from_text()))
    return await answer(service, body, order, run, "image_generation")


async def answer(service: Service, body: ImageRequest, order: DrawingOrder, run: Run[Pictures], name: str) -> Response:
    """The images of a run in OpenAI's form, or as events whose names begin with `name`."""
    if body.stream:
        return await respond(service, run, _events(order, run, name))
    pictures = (await run.items())[-1]
    data = [_held(picture, body.response_format, order.encoding) for picture in pictures.images]
    return JSONResponse({**_facts(order), "created": int(time.time()), "data": data, "usage": order.usage})


async def _events(order: DrawingOrder, run: Run[Pictures], name: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    number = 0
    async for pictures in run:
        for index, picture in enumerate(pictures.images):
            facts = {**_facts(order), "b64_json": picture, "created_at": int(time.time()), "image_index": index}
            if pictures.is_final:
                kind = f"{name}.completed"
                yield kind, {"type": kind, **facts, "usage": order.usage}
            else:
                kind = f"{name}.partial_image"
                yield kind, {"type": kind, **facts, **order.preview_facts, "partial_image_index": number}
        number += 1


def _facts(order: DrawingOrder) -> dict[str, Any]:
    """What is returned with every image. The seed draws it again."""
    encoding = order.encoding
    return {
        "size": encoding.size,
        "quality": "auto",
        "background": "opaque",
        "output_format": encoding.format,
        "seed": order.seed,
    }


def _held(picture: str, response_format: str, encoding: Encoding) -> dict[str, Any]:
    is_url = response_format == "url"
    url = f"data:{encoding.media_type};base64,{picture}" if is_url else None
    return {"b64_json": None if is_url else picture, "url": url, "revised_prompt": None}
