"""The engine as the routes use it: whom it admits, for how long, and how it is doing."""

import time

from fastapi import Request

from unimm.inference.engine import Engine
from unimm.serve.settings import ServerSettings


class Service:
    """An engine and the settings that its clients are served by.

    Args:
        engine: whose own thread makes the steps; started here.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings
        self.started = int(time.time())

    @property
    def model_name(self) -> str:
        """What answers call the model."""
        return self.settings.served_model_names[0]


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    return request.app.state.service
