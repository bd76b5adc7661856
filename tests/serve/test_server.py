"""The server as a whole: it runs, lists its model, and answers what is wrong in OpenAI's form."""

import httpx
import openai
import pytest


def test_health_and_models(server: str, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server}/health", timeout=120).json() == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["demo", "dall-e-2"]
    model = client.models.retrieve("demo").model_dump()
    assert model["object"] == "model" and model["architecture"]["output_modalities"] == ["text", "image"]


def test_errors_have_openais_form(server: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found" and caught.value.param == "model" and "demo, dall-e-2" in str(caught.value)
    for response, status in (
        (httpx.get(f"{server}/nothing", timeout=120), 404),
        (httpx.post(f"{server}/health", timeout=120), 405),
    ):
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"
