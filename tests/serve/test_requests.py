"""Requests as clients of OpenAI's, of vLLM's and of curl's kind send them: what is understood, and what is said of the rest."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.protocol import ChatRequest
from unimm.serve.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "How many?"}]}


@pytest.fixture
def http(tiny_engine: Engine) -> TestClient:
    """A client of a server whose engine is never reached."""
    return TestClient(create_app(tiny_engine, ServerSettings(served_model_names=("tiny",), page=False)))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_json_under_another_name_is_told(http: TestClient, kind: str) -> None:
    for path in ("chat/completions", "images/generations"):
        answer = http.post(f"/v1/{path}", content=b'{"prompt": "a"}', headers={"content-type": kind})
        assert answer.status_code == 400 and 'send "Content-Type: application/json"' in answer.json()["error"]["message"]
    answer = http.post("/v1/images/edits", json={"prompt": "a"})
    assert answer.status_code == 400 and "send multipart/form-data" in answer.json()["error"]["message"]


def test_models_are_listed_with_a_slash_and_addresses_without_v1_are_told(http: TestClient) -> None:
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert "begin with /v1" in http.post("/chat/completions", json=CHAT).json()["error"]["message"]


def test_what_other_servers_have_by_default_says_nothing() -> None:
    defaults = {"top_k": -1, "skip_special_tokens": True, "ignore_eos": False, "min_tokens": 0, "length_penalty": 1.0}
    more: dict[str, Any] = {"stop_token_ids": [], "best_of": 1, "reasoning_effort": "none", "verbosity": "medium"}
    read = ChatRequest.model_validate({**CHAT, **defaults, **more})
    assert read == ChatRequest.model_validate({**CHAT, "top_k": 0}) and read.top_k == 0
    for name, value in {"skip_special_tokens": False, "ignore_eos": True, "min_tokens": 5, "top_k": -2}.items():
        with pytest.raises(ValidationError, match=name):
            ChatRequest.model_validate({**CHAT, name: value})
