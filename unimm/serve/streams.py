"""Server-sent events, and several asynchronous iterators read as one."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from unimm.serve.errors import as_api_error
from unimm.serve.service import Run, Service

T = TypeVar("T")

DONE = "[DONE]"


async def respond(service: Service, run: Run, events: AsyncIterator[tuple[str | None, dict[str, Any]]]) -> EventSourceResponse:
    """Stream what `events` make of a run: (name or None, data) each, then [DONE]; an error in between is the last event.

    Raises:
        Exception: what went wrong before the run's first item, so that it can still be the answer's status.
    """
    await run.begin()
    return EventSourceResponse(
        _written(service, run, events),
        sep="\n",
        shutdown_event=anyio.Event(),
        shutdown_grace_period=service.settings.drain_seconds,
    )


async def _written(
    service: Service, run: Run, events: AsyncIterator[tuple[str | None, dict[str, Any]]]
) -> AsyncGenerator[ServerSentEvent]:
    async with aclosing(run):
        try:
            async for name, data in events:
                yield ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)
        except Exception as raised:
            error = as_api_error(raised)
            service.metrics.failed(error)
            yield ServerSentEvent(json.dumps(error.body))
            return
        yield ServerSentEvent(DONE)


async def merged(streams: list[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """The items of several iterators as they come, each with the number of its iterator. All end with the first error."""
    news: asyncio.Queue[tuple[int, T] | asyncio.Task[None]] = asyncio.Queue()

    async def read(number: int, stream: AsyncGenerator[T]) -> None:
        async with aclosing(stream) as items:
            async for item in items:
                news.put_nowait((number, item))

    tasks = [asyncio.create_task(read(number, stream)) for number, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(news.put_nowait)
    left = len(tasks)
    try:
        while left:
            item = await news.get()
            if isinstance(item, asyncio.Task):
                item.result()  # raises what went wrong
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
