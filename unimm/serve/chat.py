"""/v1/chat/completions: answers to conversations with images; and drawings, where `modalities` asks for them."""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from unimm.inference.claims import most_voted
from unimm.inference.second_look import VOTES_TEMPERATURE
from unimm.inference.text_stream import Completion, TextChunk, TokenLogprob
from unimm.serve.conversation import check_conversation, for_engine, last_user_text
from unimm.serve.drawing import OF_PROMPTS, DrawingOrder, Pictures, check_count
from unimm.serve.errors import ApiError
from unimm.serve.interleaved import InterleavedReply, Piece
from unimm.serve.models import check_model
from unimm.serve.protocol import ChatRequest
from unimm.serve.service import Run, Service, service_of
from unimm.serve.streams import merged, respond

router = APIRouter(prefix="/v1/chat", tags=["chat"])

Event = tuple[None, dict[str, Any]]


@router.post("/completions", summary="Answer a conversation, or draw its last message")
async def complete(request: Request, body: ChatRequest) -> Response:
    """OpenAI's chat completion. Images come as parts of type image_url, and go out as `message.images`, where `modalities`
    has "image"."""
    service = service_of(request)
    check_model(service, body.model)
    check_count(service, body)
    check_conversation(service, body)
    check_votes(service, body)
    reply = Reply(service, body)
    if body.images != "never":
        return await _interleaved(request, service, body, reply)
    if "image" in body.modalities:
        order = DrawingOrder(service, body, last_user_text(body), "webp", any_form=True)
        drawing = service.run(request, "image", body.n, order.draw(order.from_text(), is_event=True))
        if body.stream:
            return await respond(service, drawing, reply.drawing_events(order, drawing))
        return JSONResponse(reply.drawn(order, (await drawing.items())[-1]))
    check_written(body)
    run = service.run(request, "text", max(body.n, body.votes), answers(service, body, reply.drafts))
    if body.stream:
        return await respond(service, run, reply.text_events(run))
    return JSONResponse(reply.written(await run.items()))


async def _interleaved(request: Request, service: Service, body: ChatRequest, reply: "Reply") -> Response:
    """Answers with images among their words."""
    seed = body.seed if body.seed is not None else secrets.randbelow(2**31)
    made = InterleavedReply(service, body, seed)
    run = service.run(request, "text", body.n, made.pieces())
    if body.stream:
        return await respond(service, run, reply.interleaved_events(made, run))
    return JSONResponse(reply.interleaved(made, await run.items(), seed))


async def answers(service: Service, body: ChatRequest, drafts: list[Completion]) -> AsyncGenerator[tuple[int, TextChunk]]:
    """The answers of the engine, chunk by chunk, each with its number; answer i is keyed by (seed, i). Of votes the one answer
    that most of them give, at the end: the usual one and others that are sampled, as in `Engine.answer`.

    drafts: all that are written to their end are added to these, those that were not chosen, too: they are counted."""
    messages, most = await for_engine(service, body), service.settings.max_new_tokens
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    settings: dict[str, Any] = {name: value for name in names if (value := getattr(body, name)) is not None}
    settings |= {
        "max_new_tokens": min(body.max_completion_tokens or body.max_tokens or service.settings.new_tokens, most),
        "stop": body.stop,
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "seed": body.seed if body.seed is not None else secrets.randbelow(2**31),
        "fit": True,
    }
    temperatures = [body.temperature or 0.0] * body.n
    if body.votes > 1:
        temperatures = [0.0] + [body.temperature or VOTES_TEMPERATURE] * (body.votes - 1)
    streams = [
        service.engine.astream_complete(messages, **settings, temperature=temperature, index=index)
        for index, temperature in enumerate(temperatures)
    ]
    started, is_first = time.monotonic(), True
    done: dict[int, Completion] = {}
    async for index, chunk in merged(streams):
        if is_first:
            service.metrics.first_token.observe(time.monotonic() - started)
            is_first = False
        if chunk.completion is not None:
            service.metrics.text_tokens.inc(len(chunk.completion.ids))
            done[index] = chunk.completion
            drafts.append(chunk.completion)
        if body.votes == 1:
            yield index, chunk
    if body.votes > 1:
        completions = [done[index] for index in sorted(done)]
        chosen = completions[most_voted([one.text for one in completions])[0]]
        yield 0, TextChunk(chosen.text, chosen.tokens or (), chosen)


def check_votes(service: Service, body: ChatRequest) -> None:
    """ApiError 400: more votes than the server takes, votes on a drawing, or several answers of votes."""
    if body.votes > (most := service.settings.max_images_out):
        raise ApiError(400, f"votes is at most {most} here.", param="votes")
    if body.votes > 1 and (body.n > 1 or "image" in body.modalities):
        raise ApiError(400, "Votes are of one answer in text: leave n and image out.", param="votes")


def check_written(body: ChatRequest) -> None:
    """ApiError 400: a text is asked for, and fields of drawings alone."""
    for name in OF_PROMPTS:
        if getattr(body, name) is not None:
            sentence = f'{name} is of drawings, and a text is asked for: leave it out, or set modalities to ["image"].'
            raise ApiError(400, sentence, param=name)


class Reply:
    """The answer to one request: as one object, or as the events of a stream.

    drafts: of texts all that were written, which the usage counts.
    """

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.drafts: list[Completion] = []
        self._body, self._control_ids = body, service.engine.tokenizer.control_ids
        self._shared = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model or service.model_name,
        }

    # -- texts --------------------------------------------------------------------------------------------------------

    def written(self, chunks: list[tuple[int, TextChunk]]) -> dict[str, Any]:
        """The answer, of all chunks."""
        completions = _completions(chunks)
        choices = []
        for index, completion in enumerate(completions):
            message = {"role": "assistant", "content": completion.text, "refusal": None}
            choices.append(self._choice(index, message, completion.finish_reason, completion.tokens))
        return self._whole(choices, _text_usage(self.drafts))

    async def text_events(self, run: Run[tuple[int, TextChunk]]) -> AsyncIterator[Event]:
        """A chunk an event; before the first of each answer its role, after the last why it ended."""
        for index in range(self._body.n):
            yield self._event([_delta(index, {"role": "assistant", "content": ""})])
        async for index, chunk in run:
            if chunk.text or chunk.tokens:
                yield self._event([{**_delta(index, {"content": chunk.text}), "logprobs": self._logprobs(chunk.tokens)}])
            if chunk.completion is not None:
                yield self._event([_delta(index, {}, chunk.completion.finish_reason)])
        for event in self._usage_event(_text_usage(self.drafts)):
            yield event

    # -- drawings -----------------------------------------------------------------------------------------------------

    def drawn(self, order: DrawingOrder, pictures: Pictures) -> dict[str, Any]:
        """The answer, of drawings."""
        choices = []
        for index, picture in enumerate(pictures.images):
            message = {"role": "assistant", "refusal": None, **self._shown(order, picture)}
            choices.append(self._choice(index, message, "stop", None))
        return {**self._whole(choices, _image_usage(order)), "seed": order.seed}

    async def drawing_events(self, order: DrawingOrder, run: Run[Pictures]) -> AsyncIterator[Event]:
        """An event an image."""
        async for pictures in run:
            for index, picture in enumerate(pictures.images):
                shown = self._shown(order, picture)
                for image in shown.get("images", []):
                    image["index"] = 0
                yield self._event([_delta(index, {"role": "assistant", **shown})])
                yield self._event([_delta(index, {}, "stop")])
        for event in self._usage_event(_image_usage(order)):
            yield event

    def _shown(self, order: DrawingOrder, picture: str) -> dict[str, Any]:
        url = f"data:{order.encoding.media_type};base64,{picture}"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        return {"content": parts} if self._body.image_placement == "content" else {"content": "", "images": parts}

    # -- words and images -----------------------------------------------------------------------------------------------

    def interleaved(self, made: InterleavedReply, pieces: list[Piece], seed: int) -> dict[str, Any]:
        """The answer, of words and images."""
        return {**self._whole(made.choices(pieces), made.usage), "seed": seed}

    async def interleaved_events(self, made: InterleavedReply, run: Run[Piece]) -> AsyncIterator[Event]:
        """An event a piece."""
        async for delta in made.deltas(run):
            yield self._event([delta])
        for event in self._usage_event(made.usage):
            yield event

    # -- both ---------------------------------------------------------------------------------------------------------

    def _choice(
        self, index: int, message: dict[str, Any], reason: str, tokens: tuple[TokenLogprob, ...] | None
    ) -> dict[str, Any]:
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...] | None) -> dict[str, Any] | None:
        """Of the tokens that are text: not of the one with which the model ends its turn."""
        if not self._body.logprobs or tokens is None:
            return None
        words = [token for token in tokens if token.id not in self._control_ids]
        content = [{**_token(word), "top_logprobs": [_token(other) for other in word.top]} for word in words]
        return {"content": content, "refusal": None}

    def _whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._shared, "object": "chat.completion", "choices": choices, "usage": usage}

    def _event(self, choices: list[dict[str, Any]]) -> Event:
        return None, {**self._shared, "object": "chat.completion.chunk", "choices": choices}

    def _usage_event(self, usage: dict[str, Any]) -> list[Event]:
        if not self._body.stream_options.include_usage:
            return []
        name, data = self._event([])
        return [(name, {**data, "usage": usage})]


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


def _completions(chunks: list[tuple[int, TextChunk]]) -> list[Completion]:
    """In the order of their numbers."""
    done = {index: chunk.completion for index, chunk in chunks if chunk.completion is not None}
    return [done[index] for index in sorted(done)]


def _text_usage(completions: list[Completion]) -> dict[str, Any]:
    prompt, written = completions[0].num_prompt_positions, sum(len(one.ids) for one in completions)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _image_usage(order: DrawingOrder) -> dict[str, Any]:
    usage = order.usage
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
