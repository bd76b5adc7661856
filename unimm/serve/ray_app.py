"""Ray Serve around the same application: replicas on one machine or on many, autoscaling, restarts, answers streamed through.

    serve run unimm.serve.ray_app:build model=demo min_replicas=2 max_replicas=4

A replica is one engine with all routes, in a process of its own; Ray's proxy gives each request to one of them, and starts
another where a replica has died or its `check_health` fails. The page keeps what a visitor does in one process, so replicas do
not serve it. Needs the extra `ray`.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve  # pyright: ignore[reportMissingImports]

from unimm.inference.decode.workload import PREFIX_CACHE_SHARE, Limits
from unimm.inference.engine import load
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings


class Arguments(BaseModel):
    """Arguments of `build`: `name=value` of `serve run`, or `args` of an application in `serve deploy`'s YAML.

    model, device, dtype, weights: as `unimm.load` takes them; "auto" leaves device and dtype to it.
    max_rows, cache_gb: rows decoded together by a replica, and gigabytes of its keys and values at most.
    min_replicas, max_replicas, target_ongoing_requests: Ray adds replicas while each has more requests than that.
    upscale_delay_s, downscale_delay_s: seconds for which it must be so until Ray adds one, or removes one.
    num_cpus, num_gpus: that Ray reserves for a replica; its threads are as many as num_cpus.
    api_key, served_model_name: as `unimm serve` has them.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    weights: str | None = None
    max_rows: int = Field(128, ge=2)
    cache_gb: float = Field(4.0, gt=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(16.0, gt=0)
    upscale_delay_s: float = Field(30.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    api_key: str | None = None
    served_model_name: str = "unimm"


class Replica:
    """One engine with its routes; Ray asks it whether it is well."""

    app: FastAPI

    def check_health(self) -> None:
        """RuntimeError: the engine is dead or stuck. Ray then replaces the replica."""
        trouble = self.app.state.service.trouble
        if trouble is not None:
            raise RuntimeError(f"The engine is {trouble}.")


def build(arguments: Arguments) -> serve.Application:
    """The application, for `serve run`, `serve deploy` and `ray.serve.run`."""

    def open_app() -> FastAPI:
        """Called in the process of each replica."""
        return create_app(open_engine(arguments), open_settings(arguments))

    autoscaling = {
        "min_replicas": arguments.min_replicas,
        "max_replicas": max(arguments.min_replicas, arguments.max_replicas),
        "target_ongoing_requests": arguments.target_ongoing_requests,
        "upscale_delay_s": arguments.upscale_delay_s,
        "downscale_delay_s": arguments.downscale_delay_s,
    }
    deployment: Any = serve.deployment(
        serve.ingress(open_app)(Replica),
        name="unimm",
        autoscaling_config=autoscaling,
        max_ongoing_requests=ServerSettings.max_queue,
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=ServerSettings.drain_seconds,
    )
    return deployment.bind()


def open_engine(arguments: Arguments) -> Any:
    """The engine of a replica: requests wait for memory, and never drop each other for lack of it."""
    device, dtype = (None if one == "auto" else one for one in (arguments.device, arguments.dtype))
    most = int(arguments.cache_gb * 1e9)
    limits = Limits(arguments.max_rows, max_cache_bytes=most, prefix_cache_bytes=int(PREFIX_CACHE_SHARE * most))
    return load(arguments.model, device, dtype, limits=limits, weights=arguments.weights)


def open_settings(arguments: Arguments) -> ServerSettings:
    """The settings of a replica."""
    return ServerSettings(api_key=arguments.api_key, served_model_names=(arguments.served_model_name,), page=False)
