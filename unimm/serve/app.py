"""The server: one FastAPI application around one engine."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from unimm.inference.engine import Engine
from unimm.runtime.version import package_version
from unimm.serve import chat, edits, health, images, metrics, models
from unimm.serve.errors import ApiError, ErrorBody, add_error_handlers
from unimm.serve.guard import add_guards
from unimm.serve.service import Service
from unimm.serve.settings import ServerSettings

STOP_SECONDS = 5.0
"""That the engine's last step gets; one that hangs is not waited for."""


def create_app(engine: Engine, settings: ServerSettings | None = None) -> FastAPI:
    """All routes, for uvicorn or any other ASGI server. `app.state.service` is the engine with its admission.

    The engine's own thread runs from the app's start-up to its shut-down; `app.state.hangs`: it could not be stopped.
    `app.state.pages`: what is to be closed when the server ends (`PageRoutes`), see `server`.
    """
    service = Service(engine, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.decoder.start()
        watch = asyncio.create_task(service.watch())
        yield
        watch.cancel()
        service.stop_all(ApiError(503, "The server is shutting down: ask again.", "server_error"))
        stopping = threading.Thread(target=engine.decoder.stop, daemon=True)
        stopping.start()
        await asyncio.to_thread(stopping.join, STOP_SECONDS)
        app.state.hangs = stopping.is_alive()

    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody, "description": "What is wrong, and what to do"}}
    app = FastAPI(title="unimm", version=package_version(), lifespan=lifespan, responses=errors)
    app.state.service, app.state.hangs, app.state.pages = service, False, []
    add_error_handlers(app)
    add_guards(app, service.settings)
    if service.settings.allowed_origins:  # outermost: browsers ask without the key whether they may send it
        origins = list(service.settings.allowed_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    for part in (chat, images, edits, models, health, metrics):
        app.include_router(part.router)
    if service.settings.page:
        from unimm.serve.page.mount import mount_page

        mount_page(app, engine, service.settings)
    return app
