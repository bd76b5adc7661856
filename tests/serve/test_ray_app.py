"""The Ray Serve application: what is deployed, and when a replica is replaced. `unimm bench serve-ray` kills one under load."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

pytest.importorskip("ray.serve")

from unimm.serve.ray_app import Arguments, Replica, build, open_settings


def test_what_is_deployed() -> None:
    words = {"min_replicas": "2", "max_replicas": "4", "downscale_delay_s": "9", "num_gpus": "1"}  # as the shell gives them
    deployment = cast(Any, build(Arguments.model_validate(words)))._bound_deployment
    assert deployment.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 1.0}
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 4, 16.0)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (30.0, 9.0)


def test_a_mistake_is_refused_before_anything_starts() -> None:
    for wrong in ({"modle": "demo"}, {"min_replicas": 0}, {"cache_gb": -1}):
        with pytest.raises(ValidationError):
            Arguments.model_validate(wrong)


def test_a_replica_is_ill_when_its_engine_is() -> None:
    replica = Replica()
    for trouble in (None, "dead", "stuck"):
        service = SimpleNamespace(trouble=trouble)
        replica.app = cast(Any, SimpleNamespace(state=SimpleNamespace(service=service)))
        if trouble is None:
            replica.check_health()
        else:
            with pytest.raises(RuntimeError, match=f"The engine is {trouble}"):
                replica.check_health()


def test_settings() -> None:
    settings = open_settings(Arguments(api_key="secret", served_model_name="janus"))
    assert settings.api_key == "secret" and settings.served_model_names == ("janus",) and not settings.page
