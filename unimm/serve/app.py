"""The server: one FastAPI application around one engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from unimm.inference.engine import Engine
from unimm.runtime.version import package_version
from unimm.serve import health, models
from unimm.serve.errors import ErrorBody, add_error_handlers
from unimm.serve.guard import add_guards
from unimm.serve.service import Service
from unimm.serve.settings import ServerSettings


def create_app(engine: Engine, settings: ServerSettings | None = None) -> FastAPI:
    """All routes, for uvicorn or any other ASGI server. `app.state.service` is the engine with its admission.

    The engine's own thread runs from the app's start-up to its shut-down.
    """
    service = Service(engine, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.decoder.start()
        yield
        engine.decoder.stop()

    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody, "description": "What is wrong, and what to do"}}
    app = FastAPI(title="unimm", version=package_version(), lifespan=lifespan, responses=errors)
    app.state.service = service
    add_error_handlers(app)
    add_guards(app, service.settings)
    for part in (health, models):
        app.include_router(part.router)
    if service.settings.page:
        from unimm.serve.page.mount import mount_page

        mount_page(app, engine, service.settings)
    return app
