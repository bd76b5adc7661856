"""The server as a whole: it runs, lists its model, and answers what is wrong in OpenAI's form."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from unimm.data.video.choosing import VideoFormat
from unimm.inference.engine import Engine
from unimm.serve.models import describe
from unimm.serve.service import Service
from unimm.serve.settings import ServerSettings


def test_health_and_models(server: str, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server}/health", timeout=120).json() == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["demo", "dall-e-2"]
    model = client.models.retrieve("demo").model_dump()
    assert model["object"] == "model" and model["architecture"]["output_modalities"] == ["text", "image"]


def test_a_model_is_described_by_what_it_reads_and_writes(demo_engine: Engine) -> None:
    bundle = demo_engine.bundle
    watching = replace(bundle.prompt_format, video=VideoFormat())
    for own, reads, writes in (
        (SimpleNamespace(prompt_format=watching, drawing_ways=()), ["text", "image", "video"], ["text"]),
        (bundle, ["text", "image"], ["text", "image"]),
    ):
        engine: Any = SimpleNamespace(bundle=own, prompt_format=own.prompt_format, decoder=demo_engine.decoder)
        told = describe(Service(engine, ServerSettings()), "name")["architecture"]
        assert told == {"input_modalities": reads, "output_modalities": writes}


def test_errors_have_openais_form(server: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found" and caught.value.param == "model" and "demo, dall-e-2" in str(caught.value)
    for response, status in (
        (httpx.get(f"{server}/nothing", timeout=120), 404),
        (httpx.post(f"{server}/health", timeout=120), 405),
    ):
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"
