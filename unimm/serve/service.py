"""The engine as the routes use it: whom it admits, what it works on, and how it is doing.

Each HTTP request is one `Run`: work in a task of its own, whose items its route reads. A run ends early, and takes its rows of
the engine with it, when its client hangs up (streaming or not), at its deadline, and when the engine dies or is stuck.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Generic, TypeVar

from fastapi import Request

from unimm.inference.decode.scheduler import EngineDead
from unimm.inference.decode.workload import QueueFull
from unimm.inference.engine import Engine
from unimm.serve.errors import ApiError, as_api_error
from unimm.serve.metrics import Metrics
from unimm.serve.settings import ServerSettings

T = TypeVar("T")

WATCH_SECONDS = 0.25
"""Between looks at the engine."""

MAX_RETRY_AFTER = 60

_END: Any = object()


class Service:
    """An engine and the settings that its clients are served by.

    started: when, in seconds since 1970. num_open: answers and drawings that run or wait.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings
        self.started = int(time.time())
        self.metrics = Metrics()
        self.num_open = 0
        self._runs: set[Run] = set()
        self._mean_seconds = 1.0  # that a request took, of late

    @property
    def model_name(self) -> str:
        """What answers call the model."""
        return self.settings.served_model_names[0]

    @property
    def trouble(self) -> str | None:
        """Why no requests are served: "dead", "stuck", or None where they are. It takes no lock."""
        decoder = self.engine.decoder
        if not decoder.is_alive:
            return "dead"
        return "stuck" if decoder.stalled_seconds > self.settings.stuck_after else None

    def run(self, request: Request | None, kind: str, count: int, work: AsyncGenerator[T]) -> "Run[T]":
        """Admit a request and begin its work.

        Args:
            request: whose client may hang up; None for the page's, which closes the run itself.
            kind: "text" or "image", for metrics.
            count: answers or drawings that it asks for.

        Raises:
            ApiError: 429, too many run or wait already; 503, the engine is dead or stuck.
        """
        if self.trouble is not None:
            raise self._unavailable()
        if self.num_open + count > self.settings.max_queue:
            seconds = min(MAX_RETRY_AFTER, max(1, round(self._mean_seconds)))
            message = f"The server is busy: ask again in {seconds} seconds."
            raise ApiError(429, message, "rate_limit_error", code="queue_full", retry_after=seconds)
        self.num_open += count
        run = Run(self, request, kind, count, work)
        self._runs.add(run)
        return run

    async def watch(self) -> None:
        """End what runs once the engine is dead or stuck; for ever."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._runs and self.trouble is not None:
                self.stop_all(self._unavailable())

    def stop_all(self, error: ApiError) -> None:
        """End what runs with an error."""
        for run in list(self._runs):
            run.stop(error)

    def _unavailable(self) -> ApiError:
        message = f"The engine is {self.trouble or 'stopped'}: ask again when the server was started again."
        return ApiError(503, message, "server_error", code="engine_unavailable", retry_after=MAX_RETRY_AFTER)

    def _leave(self, run: "Run") -> None:
        self._runs.discard(run)
        self.num_open -= run.count
        seconds = time.monotonic() - run.started
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self.metrics.finished(run.kind, "ok" if run.error is None else run.error.kind, seconds)


class Run(Generic[T]):
    """The work for one HTTP request, read with `async for`; what goes wrong is raised there as an ApiError.

    started: `time.monotonic` of its begin. error: why it ended, where it did not end by itself.
    """

    def __init__(self, service: Service, request: Request | None, kind: str, count: int, work: AsyncGenerator[T]) -> None:
        self.kind, self.count, self.started = kind, count, time.monotonic()
        self.error: ApiError | None = None
        self._first: Any = None
        self._service, self._news = service, asyncio.Queue[T]()
        deadline = service.settings.deadline_seconds
        message = f"The request took longer than {deadline:g} seconds: ask for less, or again when the server is less busy."
        late = ApiError(408, message, "timeout_error", code="deadline_exceeded")
        self._timer = asyncio.get_running_loop().call_later(deadline, self.stop, late)
        self._client = asyncio.create_task(self._wait_for_hang_up(request))
        self._task = asyncio.create_task(self._work(work))

    def stop(self, error: ApiError) -> None:
        """End it with an error, unless it has ended."""
        if not self._task.done() and self.error is None:
            self.error = error
            self._task.cancel()

    async def aclose(self) -> None:
        """End it, if it has not ended: nobody reads it any more."""
        self.stop(ApiError(499, "The client has hung up.", "client_closed"))
        await asyncio.wait([self._task])

    def __aiter__(self) -> "Run[T]":
        return self

    async def begin(self) -> None:
        """Wait for the first item. Raises what goes wrong before it comes; then nothing is left of the run."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.aclose)
            self._first = await anext(self)
            stack.pop_all()

    async def __anext__(self) -> T:
        if self._first is not None:
            item, self._first = self._first, None
            return item
        item = await self._news.get()
        if item is not _END:
            return item
        self._news.put_nowait(_END)
        if self.error is None:
            raise StopAsyncIteration
        raise self.error

    async def items(self) -> list[T]:
        """All there is, at the end."""
        async with aclosing(self):
            return [item async for item in self]

    async def _work(self, work: AsyncGenerator[T]) -> None:
        try:
            async with aclosing(work) as items:
                async for item in items:
                    self._news.put_nowait(item)
        except asyncio.CancelledError:  # by `stop`, which has said why
            self.error = self.error or ApiError(503, "The server is shutting down: ask again.", "server_error")
        except Exception as error:
            self.error = self.error or engine_error(error)
        finally:
            self._timer.cancel()
            self._client.cancel()
            self._service._leave(self)
            self._news.put_nowait(_END)

    async def _wait_for_hang_up(self, request: Request | None) -> None:
        """A route that does not stream is not told when its client leaves: ASGI says so to whoever goes on receiving."""
        if request is None:
            return
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.stop(ApiError(499, "The client has hung up.", "client_closed"))


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    return request.app.state.service


def engine_error(error: Exception) -> ApiError:
    """The answer that a client gets for an exception of the engine."""
    if isinstance(error, EngineDead):
        return ApiError(503, "The engine has died: ask again when the server was started again.", "server_error")
    if isinstance(error, QueueFull):
        return ApiError(429, "The server is busy: ask again in a second.", "rate_limit_error", code="queue_full", retry_after=1)
    if isinstance(error, ValueError) and _is_ours(error.__traceback__):
        return ApiError(400, str(error))
    return as_api_error(error)


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether our own code raised it: then it is a sentence for users. Those of libraries may hold paths and addresses."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("unimm.")
