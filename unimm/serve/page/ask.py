"""The tab that answers: a conversation with any number of pictures, written as it comes; and drawn, by models that were taught
to draw in their answers."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from unimm.inference.assistant_message import ChatPiece
from unimm.inference.messages import Message
from unimm.serve.errors import ApiError
from unimm.serve.page.context import Page, read_upload, with_messages
from unimm.serve.page.drawings import preview_every
from unimm.serve.page.examples import QUESTIONS, Example

Chat = list[dict[str, Any]]
"""Messages as Gradio's chatbot has them: {"role", "content": a list of {"type": "text", ...} and {"type": "file", ...}}."""


DRAFT = "draft"
"""Name of the file of an image that was not done, which no later turn looks at."""

WAITING, EMPTY = "…", "∅"
"""What stands for an answer until it begins, and for one without words."""


def build_ask(page: Page) -> gr.MultimodalTextbox:
    """Put the tab's components into the blocks around it. Returns the box that questions and pictures are put into."""
    words = page.words
    chat = gr.Chatbot(
        elem_id="chat",
        show_label=False,
        label=words("ask_tab"),
        height="min(56vh, 560px)",
        placeholder=f"### {words('ask_hint')}",
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        group_consecutive_messages=False,
    )
    gr.HTML(f'<p class="try">{words("ask_try")}</p>')
    with gr.Row(elem_classes="examples"):
        examples = [
            gr.Button(example.question, icon=page.examples / example.pictures[0], elem_classes="example", size="sm")
            for example in QUESTIONS[words.language, page.knows_shapes]
        ]
    box = gr.MultimodalTextbox(
        elem_id="ask-box",
        show_label=False,
        label=words("ask_tab"),
        placeholder=words("ask_box"),
        file_count="multiple",
        file_types=["image"],
        lines=1,
        max_lines=6,
        submit_btn=True,
        stop_btn=False,
        sources=["upload"],
    )
    with gr.Row(elem_classes="below"):
        with gr.Accordion(words("settings"), open=False, elem_classes="settings"):
            temperature = gr.Slider(
                0, 1.5, 0, step=0.05, label=words("temperature"), info=words("temperature_help"), buttons=[]
            )
            longest = min(page.settings.max_new_tokens, page.engine.decoder.max_positions)
            tokens = gr.Slider(8, longest, min(256, longest), step=8, label=words("max_new_tokens"), buttons=[])
            taught = page.engine.prompt_format.looks_at_drawings
            draws = gr.Checkbox(taught, label=words("may_draw"), info=words("may_draw_help"), visible=page.paints)
        clear = gr.Button(words("new_chat"), size="sm", elem_classes="quiet", scale=0, min_width=150)

    outputs = [chat, box]
    ready = partial(gr.MultimodalTextbox, submit_btn=True, stop_btn=False)
    answered = with_messages(partial(_ask, page), lambda: (gr.skip(), ready()))
    events: list[Any] = [box.submit(answered, [box, chat, temperature, tokens, draws], outputs, show_progress="hidden")]
    for button, example in zip(examples, QUESTIONS[words.language, page.knows_shapes], strict=True):
        asked = with_messages(partial(_ask_example, page, example), lambda: (gr.skip(), ready()))
        events.append(button.click(asked, [temperature, tokens, draws], outputs, show_progress="hidden"))
    box.stop(lambda chat: (_say_stopped(page, chat), ready()), chat, outputs, cancels=events)
    clear.click(lambda: ([], ready()), None, outputs, cancels=events)
    return box


async def _ask_example(page: Page, example: Example, temperature: float, tokens: float, draws: bool) -> AsyncGenerator[Any]:
    """A conversation that begins anew with an example."""
    message = {"text": example.question, "files": [str(page.examples / name) for name in example.pictures]}
    async with aclosing(_ask(page, message, [], temperature, tokens, draws)) as updates:
        async for update in updates:
            yield update


async def _ask(
    page: Page, message: dict[str, Any], chat: Chat, temperature: float, tokens: float, draws: bool
) -> AsyncGenerator[Any]:
    """The conversation with the next answer in it, as often as that has grown; and the box, empty and with a button to stop."""
    text = (message.get("text") or "").strip()
    if not text:
        raise ApiError(400, page.words("question_missing"))
    shown = [{"type": "file", "file": {"path": path, "mime_type": "image/*"}} for path in message.get("files") or []]
    chat = [*chat, {"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
    # Before anything is shown: a bad picture stays in the box.
    messages = unanswered_left_out([await _read(page, one) for one in chat], page.words("stopped"))
    busy = gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)
    yield [*chat, {"role": "assistant", "content": WAITING}], busy
    answer: Any = ""
    settings: dict[str, Any] = {"max_new_tokens": int(tokens), "temperature": float(temperature)}
    if draws and page.paints:
        settings |= {"images": "auto", "preview_every": preview_every(page.engine), "seed": secrets.randbelow(1000)}
    async with aclosing(page.run("text", 1, page.engine.astream_chat(messages, **settings))) as pieces:
        async for answer in _grown(pieces):
            yield [*chat, {"role": "assistant", "content": answer}], gr.skip()
    if not (answer.strip() if isinstance(answer, str) else answer):
        yield [*chat, {"role": "assistant", "content": EMPTY}], gr.skip()


async def _grown(pieces: AsyncIterator[str | ChatPiece]) -> AsyncGenerator[str | list[dict[str, Any]]]:
    """An answer after each of its pieces: words, or a list of parts once there are images in it."""
    words, parts = "", list[dict[str, Any]]()
    async for piece in pieces:
        words += piece if isinstance(piece, str) else piece.text
        said = [*parts, {"type": "text", "text": words}] if words.strip() else [*parts]
        if isinstance(piece, str) or piece.text:
            yield said if parts else words
        elif piece.image is not None:
            parts, words = [*said, await asyncio.to_thread(_as_file, piece.image, "drawing")], ""
            yield parts
        elif piece.preview is not None:
            yield [*said, await asyncio.to_thread(_as_file, piece.preview, DRAFT)]


def _as_file(image: Image.Image, name: str) -> dict[str, Any]:
    """An image as a part of a message, in a file where Gradio serves and deletes them."""
    path = save_pil_to_cache(image, get_upload_folder(), name=name, format="png")
    return {"type": "file", "file": {"path": path, "mime_type": "image/png"}}


def _say_stopped(page: Page, chat: Chat) -> Any:
    """The conversation, where an answer was stopped before it began; of one that has begun, what there is stays."""
    if not chat or chat[-1]["content"] not in (WAITING, [{"type": "text", "text": WAITING}]):
        return gr.skip()
    return [*chat[:-1], {"role": "assistant", "content": page.words("stopped")}]


def unanswered_left_out(messages: list[Message], stopped: str) -> list[Message]:
    """The messages without questions that got no answer, and what stands in its place; their pictures go with the next one."""
    kept: list[Message] = []
    pictures: list[Any] = []
    for one in messages:
        parts: Any = one["content"]
        if kept and one["role"] == "assistant" and [part.get("text") for part in parts] in ([WAITING], [EMPTY], [stopped]):
            unanswered: Any = kept.pop()["content"]
            pictures = [part for part in unanswered if part["type"] == "image"]
            continue
        kept.append({"role": one["role"], "content": [*pictures, *parts]})
        pictures = []
    return kept


async def _read(page: Page, message: dict[str, Any]) -> Message:
    """A message of the chat for the engine, its pictures read."""
    content: Any = message["content"]
    parts: list[dict[str, Any]] = []
    given: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in given:
        if part["type"] == "text":
            parts.append({"type": "text", "text": part["text"]})
        elif part["type"] == "file" and not (message["role"] == "assistant" and Path(part["file"]["path"]).stem == DRAFT):
            parts.append({"type": "image", "image": await read_upload(page, part["file"]["path"])})
    num_images = sum(part["type"] == "image" for part in parts)
    if num_images > page.settings.max_images:
        raise ApiError(400, f"{num_images} pictures are more than the {page.settings.max_images} that one question may have.")
    return {"role": message["role"], "content": parts}
