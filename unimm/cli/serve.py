"""`unimm serve`: one engine behind an OpenAI-compatible server, with a web page, in this process."""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.cli.options import Device, Dtype, Kernels, Weights, Window, default_model, open_model

if TYPE_CHECKING:
    from unimm.inference.engine import Engine
    from unimm.serve.settings import ServerSettings

serving = typer.Typer(rich_markup_mode=None)

CACHE_SHARE = 0.5
"""Of the memory that is free beside the model, for keys and values by default."""


@serving.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Folder, hub id or demo [default: $UNIMM_MODEL, the quickstart's, or demo]."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="UNIMM_API_KEY", help="Key that clients must send [default: none is asked for].")
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name that requests may ask for; repeat it, the first is in answers [default: the model's own]."),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the web page, too.")] = True,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    max_rows: Annotated[int, typer.Option(min=2, help="Rows decoded together; a drawing with guidance takes two.")] = 128,
    cache_gb: Annotated[
        float | None, typer.Option(min=0.001, help="Gigabytes for keys and values [default: half of what is free].")
    ] = None,
    prefix_cache_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Gigabytes more for prompts that begin alike; 0: none [default: a tenth of --cache-gb]."),
    ] = None,
    window: Window = None,
    kernels: Kernels = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Answers and drawings that may run or wait; then 429.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request is given up.")] = 600.0,
    stuck_after: Annotated[float, typer.Option(min=0.1, help="Seconds without a step until /health is 503.")] = 60.0,
    allowed_media_domain: Annotated[
        list[str] | None, typer.Option(help="Host that images of messages may be fetched from; repeat it [default: none].")
    ] = None,
    allowed_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may call the server (CORS); repeat it [default: none].")
    ] = None,
) -> None:
    """Serve a model to OpenAI's clients, chat front ends and browsers: answers, drawings with previews, a page.

    Addresses: /v1/chat/completions, /v1/images/generations, /v1/images/edits, /v1/models, /health, /metrics, /docs.

    \b
    Examples:
      unimm serve
      unimm serve models/janus-pro-1b --host 0.0.0.0 --api-key secret --served-model-name janus
    """
    if api_key is not None and not api_key.strip():  # as of --api-key "$KEY" where there is no KEY
        raise ValueError("The key (--api-key, $UNIMM_API_KEY) is empty, and would let everybody in: give one, or none.")
    check_extra(page)
    from unimm.serve.guard import LOCAL_NAMES
    from unimm.serve.settings import ServerSettings

    name = model or default_model()
    settings = ServerSettings(
        host=host,
        port=port,
        api_key=api_key,
        served_model_names=tuple(served_model_name or [name_of(name)]),
        page=page,
        allowed_origins=tuple(allowed_origin or ()),
        max_queue=max_queue,
        deadline_seconds=deadline,
        stuck_after=stuck_after,
        allowed_media_domains=tuple(allowed_media_domain or ()),
        allowed_hosts=LOCAL_NAMES if host in LOCAL_NAMES and not api_key else (),
    )
    with listen(host, port) as listener:  # before the model is loaded: a port that is taken costs no wait
        engine = with_limits(
            open_model(name, device, dtype, None), weights, max_rows, cache_gb, window, prefix_cache_gb, kernels
        )
        run(engine, settings, listener)


def name_of(model: str) -> str:
    """What a model is called that is served: its folder's name, also where that is given as . or with a slash at its end."""
    return Path(os.path.abspath(model)).name or "unimm"  # noqa: PTH100 - links stay as they were named


def check_extra(page: bool) -> None:
    """ValueError: a package of the extra `serve` is not installed. page: whether Gradio is needed, too."""
    try:
        import fastapi  # noqa: F401
        import httpx  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import sse_starlette  # noqa: F401
        import uvicorn  # noqa: F401

        if page:
            import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f'The server needs {error.name}, of an extra: pip install "unimm[serve]".') from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. ValueError: that address is taken or none of this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ValueError(f"Cannot listen at {host}, port {port} ({why}): choose others with --host and --port.") from None


def with_limits(
    engine: "Engine",
    weights: str | None,
    max_rows: int,
    cache_gb: float | None,
    window: int | None = None,
    prefix_cache_gb: float | None = None,
    kernels: str | None = None,
) -> "Engine":
    """The engine with bounds for what it takes on: requests wait for memory, and never drop each other for lack of it."""
    from unimm.inference.decode.workload import PREFIX_CACHE_SHARE, Limits
    from unimm.inference.engine import Engine
    from unimm.runtime.devices import free_memory

    most = int(cache_gb * 1e9) if cache_gb is not None else int(CACHE_SHARE * free_memory(engine.device))
    prefixes = int(PREFIX_CACHE_SHARE * most if prefix_cache_gb is None else prefix_cache_gb * 1e9)
    limits = Limits(max_rows=max_rows, max_cache_bytes=most, window=window, prefix_cache_bytes=prefixes)
    return Engine(engine.bundle, limits, weights, kernels=kernels)


def run(engine: "Engine", settings: "ServerSettings", listener: socket.socket) -> None:
    """Serve until a signal comes; then requests that run may end, for `drain_seconds`, and no others are taken."""
    from unimm.serve.app import create_app
    from unimm.serve.server import Server

    class Process(Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Then asyncio would wait for ever for threads that wait for a step that hangs."""
            await super().shutdown(sockets)
            if app.state.hangs:
                os._exit(1)

    app = create_app(engine, settings)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    typer.echo(f"{', '.join(settings.served_model_names)} at {address}/v1 (interface: {address}/docs)")
    if settings.page:
        typer.echo(f"The page is at {address}/")
    Process(app, settings.drain_seconds).run(sockets=[listener])
