"""Requests that schemathesis makes from the server's own OpenAPI description: none of them breaks it."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from serve.conftest import running
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings


@pytest.fixture
def description(demo_engine: Engine) -> Iterator[schemathesis.BaseSchema]:
    """Of a server that takes little at once, so that what it takes is soon done."""
    few = ServerSettings(page=False, max_images_out=1, max_new_tokens=4, max_characters=400)
    with running(create_app(demo_engine, few)) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_no_request_breaks_the_server(description: schemathesis.BaseSchema) -> None:
    for found in description.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=5,
            derandomize=True,  # others every time: `unimm bench hostile`
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(timeout=120)
            assert response.status_code < 500, response.text
            assert response.status_code < 400 or response.json()["error"]["message"]

        check()
