"""/v1/chat/completions with `images`: answers in which the model draws where it chooses to, words and images in their order.

    image_placement "images"    message.content holds all words, message.images all images; a stream has them in their order,
                                delta.content and delta.images
    image_placement "content"   message.content is a list of parts of type text and image_url, in their order

Images go out as those of drawings do, in events that every client can read (`unimm.serve.pictures`).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from unimm.inference.assistant_message import AssistantMessage, ChatPiece, DrawnImage
from unimm.serve.conversation import for_engine
from unimm.serve.drawing import OF_PROMPTS
from unimm.serve.errors import ApiError
from unimm.serve.pictures import Encoding, encode, read_size
from unimm.serve.protocol import ChatRequest
from unimm.serve.service import Run, Service
from unimm.serve.streams import merged

Piece = tuple[int, ChatPiece, str | None]
"""The number of an answer, what came of it, and its image where that is one, as base64."""

NEUTRAL = {"logprobs": False, "votes": 1, "repetition_penalty": 1, "min_p": 0, "drawing": "codes"}
"""Fields of texts or drawings alone, with the values that ask for nothing; so are those of `OF_PROMPTS`."""


def check_interleaved(service: Service, body: ChatRequest) -> None:
    """ApiError 400: a field asks for what answers with images do not have."""
    names = [name for name in dict.fromkeys([*NEUTRAL, *OF_PROMPTS]) if name in body.model_fields_set]
    asked = [name for name in names if getattr(body, name) != NEUTRAL.get(name)]
    if "image" in body.modalities:
        asked.append("modalities")
    if asked:
        raise ApiError(400, f"An answer with images takes no {asked[0]}: leave it out, or images.", param=asked[0])
    if body.max_images > (most := service.settings.max_images_out):
        raise ApiError(400, f"max_images is at most {most} here.", param="max_images")


class InterleavedReply:
    """The answers to one request.

    Raises:
        ApiError: 400, the model draws no such size.
    """

    def __init__(self, service: Service, body: ChatRequest, seed: int) -> None:
        check_interleaved(service, body)
        self._service, self._body, self._seed = service, body, seed
        format = body.output_format or "webp"
        self._encoding = Encoding(*read_size(body.size, service.engine.sizes[:1]), format, body.output_compression)
        self._messages: list[AssistantMessage] = []

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The answers of the engine as they come; answer i has the images from i * max_images on of its seed."""
        body, service = self._body, self._service
        messages, most = await for_engine(service, body, drawn=True), service.settings.max_new_tokens
        settings: dict[str, Any] = {
            "images": body.images,
            "max_images": body.max_images,
            "max_new_tokens": min(body.max_completion_tokens or body.max_tokens or service.settings.new_tokens, most),
            "temperature": body.temperature or 0.0,
            "stop": body.stop,
            "seed": self._seed,
            "drawing": {} if body.guidance_scale is None else {"guidance_scale": body.guidance_scale},
        }
        settings |= {name: value for name in ("top_k", "top_p") if (value := getattr(body, name)) is not None}
        streams = [
            service.engine.astream_chat(messages, **settings, index=number * body.max_images) for number in range(body.n)
        ]
        started, is_first = time.monotonic(), True
        async for index, piece in merged(streams):
            if is_first:
                service.metrics.first_token.observe(time.monotonic() - started)
                is_first = False
            picture = None
            if piece.image is not None:
                service.metrics.images.inc(1)
                picture = await asyncio.to_thread(encode, piece.image, self._encoding, True)
            if piece.message is not None:
                service.metrics.text_tokens.inc(piece.message.num_tokens)
                self._messages.append(piece.message)
            yield index, piece, picture

    def choices(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        """Of all pieces: a message an answer, and why it ended."""
        found = []
        for number in range(self._body.n):
            own = [(piece, picture) for index, piece, picture in pieces if index == number]
            message = next(piece.message for piece, _ in own if piece.message is not None)
            pictures = iter([picture for _, picture in own if picture is not None])
            content = [self._part(next(pictures)) if isinstance(part, DrawnImage) else part for part in message.parts]
            if self._body.image_placement == "content":
                parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
                shown: dict[str, Any] = {"content": parts}
            else:
                shown = {"content": message.text, "images": [part for part in content if not isinstance(part, str)]}
            answer = {"role": "assistant", "refusal": None, **shown}
            found.append({"index": number, "message": answer, "finish_reason": message.finish_reason, "logprobs": None})
        return found

    async def deltas(self, run: Run[Piece]) -> AsyncIterator[dict[str, Any]]:
        """Of each piece as it comes: what a stream's event holds of it."""
        for index in range(self._body.n):
            yield {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        counts = [0] * self._body.n
        async for index, piece, picture in run:
            if piece.text:
                yield {"index": index, "delta": {"content": piece.text}, "finish_reason": None}
            if picture is not None:
                part = self._part(picture)
                in_content = self._body.image_placement == "content"
                delta = {"content": [part]} if in_content else {"images": [{**part, "index": counts[index]}]}
                counts[index] += 1
                yield {"index": index, "delta": delta, "finish_reason": None}
            if piece.message is not None:
                yield {"index": index, "delta": {}, "finish_reason": piece.message.finish_reason}

    def _part(self, picture: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:{self._encoding.media_type};base64,{picture}"}}

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens and codes, once all is there."""
        num_codes = self._service.engine.image_tokenizer.num_codes
        prompt = self._messages[0].num_prompt_positions if self._messages else 0
        written = sum(one.num_tokens + len(one.images) * num_codes for one in self._messages)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
