"""What every tab is built with, and how a handler of the page ends when something goes wrong: with a message, never a trace."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from unimm.inference.engine import Engine
from unimm.sequence import Kind
from unimm.serve.errors import ApiError, as_api_error
from unimm.serve.media import aread_image
from unimm.serve.page.words import Words
from unimm.serve.service import Run, Service
from unimm.serve.settings import ServerSettings

T = TypeVar("T")

MESSAGE_SECONDS = 30
"""For which a message stays, unless it is closed."""


@dataclass(frozen=True)
class Page:
    """What the tabs of one language share.

    service: the engine as the API uses it: one queue, one deadline, one account for both.
    examples: a folder with the example pictures.
    knows_shapes: the model is of the built-in worlds' size, so its examples are theirs.
    """

    service: Service
    words: Words
    examples: Path
    knows_shapes: bool

    @property
    def engine(self) -> Engine:
        """The model."""
        return self.service.engine

    @property
    def settings(self) -> ServerSettings:
        """Of the server."""
        return self.service.settings

    @property
    def paints(self) -> bool:
        """Whether the model draws codes, so that a part of a picture can be painted anew."""
        return Kind.CODES in self.engine.model.predicted_ports

    @property
    def has_codes(self) -> bool:
        """Whether an image is codes here, and not latents alone."""
        return not self.engine.image_tokenizer.is_continuous

    def run(self, kind: str, count: int, work: AsyncGenerator[T]) -> Run[T]:
        """Work of the engine, admitted as the API's is: arguments and errors of `Service.run`. To be closed by who reads it."""
        return self.service.run(None, kind, count, work)

    def run_once(self, kind: str, function: Callable[..., T], *values: Any) -> Run[T]:
        """The same for one result of a function that works in a thread."""

        async def work() -> AsyncGenerator[T]:
            yield await asyncio.to_thread(function, *values)

        return self.run(kind, 1, work())


def is_upload(path: str | Path, examples: Path) -> bool:
    """Whether a path leads to where Gradio keeps uploads and its own pictures, or into the folder of examples."""
    file = Path(path).resolve()
    return any(file.is_relative_to(folder.resolve()) for folder in (Path(get_upload_folder()), examples))


async def read_upload(page: Page, path: str | None) -> Image.Image:
    """A picture that was uploaded, or an example. No other file is opened, whatever a request says.

    Raises:
        ApiError: 400, there is none, it lies somewhere else, or it is no picture within the server's limits.
    """
    if not path:
        raise ApiError(400, page.words("picture_missing"))
    if not is_upload(path, page.examples):
        raise ApiError(400, page.words("not_a_picture"))
    try:
        data = await asyncio.to_thread(Path(path).read_bytes)
    except OSError:  # deleted meanwhile: uploads do not live for ever
        raise ApiError(400, page.words("picture_gone")) from None
    return await aread_image(data, page.settings)


def tell(error: Exception) -> None:
    """Show an error as a message on the page: what a user can mend in its own words, anything else by its id in the log."""
    gr.Warning(as_api_error(error).message, duration=MESSAGE_SECONDS, title="")


def with_messages(
    handler: Callable[..., AsyncGenerator[Any]], at_the_end: Callable[[], Any]
) -> Callable[..., AsyncGenerator[Any]]:
    """A handler that yields updates, ended by those of `at_the_end` however it ends, with a message where it failed."""

    @wraps(handler)
    async def guarded(*values: Any) -> AsyncGenerator[Any]:
        try:
            async with aclosing(handler(*values)) as updates:
                async for update in updates:
                    yield update
        except Exception as error:
            tell(error)
        yield at_the_end()

    return guarded
