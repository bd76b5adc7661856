"""`unimm bench serve` and `serve-ray`: the clients, the judge of answers, the peer, and what is read out of it all."""

import asyncio
import base64
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from unimm.bench import serve_ray
from unimm.bench.serve import Setting, expect, is_right, make_requests, summarize
from unimm.bench.serve_clients import ANSWERED, FAILED, LEFT, REFUSED, Exchange, Load, run_clients
from unimm.bench.serve_peer import Model, create_peer
from unimm.bench.server_process import Server, free_port
from unimm.cli.bench.serve import find_missed, show
from unimm.inference.engine import Engine
from unimm.serve.background import BackgroundServer

SETTING = Setting("tiny", "cpu", "float32", num_requests=3)


@pytest.fixture(scope="module")
def address(tiny_engine: Engine):
    """A server of the tiny model."""
    with BackgroundServer(tiny_engine) as server:
        yield server.address
        assert tiny_engine.decoder.stats().num_rows == 0


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    """Of each kind three, greedy and sampled."""
    return make_requests(SETTING)


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine, requests: list[dict[str, Any]]) -> list[list[Any]]:
    """What the engine gives for them."""
    return expect(tiny_engine, requests, lambda told: None)


def test_answers_under_load_are_those_of_the_engine(address: str, requests: list, expected: list) -> None:
    load = Load(address, "", "", num_clients=4, num_requests=4, disconnects=0.0)
    exchanges = asyncio.run(run_clients(load, requests))
    assert [one.outcome for one in exchanges] == [ANSWERED] * 16
    assert {one.streamed for one in exchanges} == {True, False} and {one.request for one in exchanges} == set(range(6))
    assert all(is_right(one, expected[one.request]) for one in exchanges)
    assert all(one.seconds > 0 and (one.first or 0.0) < one.seconds for one in exchanges)
    told = summarize(exchanges, requests, 1e9)
    assert (told["sent"], told[ANSWERED], told[LEFT], told[FAILED]) == (16, 16, 0, 0)
    assert told["latency"]["text"]["p50"] <= told["latency"]["text"]["p99"] <= told["latency"]["text"]["max"]


def test_clients_leave_and_are_refused(address: str, requests: list) -> None:
    leaving = Load(address, "", "", num_clients=2, num_requests=2, disconnects=1.0, seed=1)
    assert {one.outcome for one in asyncio.run(run_clients(leaving, requests))} <= {LEFT, ANSWERED}
    wrong = [{"path": "/v1/images/generations", "body": {"prompt": ""}}]
    (one,) = asyncio.run(run_clients(replace(leaving, num_clients=1, num_requests=1, disconnects=0.0), wrong))
    assert (one.outcome, one.status) == (REFUSED, 400) and "error" in one.error
    gone = replace(leaving, address=f"http://127.0.0.1:{free_port()}", num_clients=1, num_requests=1, disconnects=0.0)
    (one,) = asyncio.run(run_clients(gone, requests))
    assert one.outcome == FAILED and "Connect" in one.error


def test_an_answer_that_is_another_is_seen(expected: list) -> None:
    text = Exchange(0, False, 0.0, ANSWERED, 200, answer=[expected[0][0]])
    assert is_right(text, expected[0]) and not is_right(replace(text, answer=[expected[0][0] + "x"]), expected[0])
    (image,) = expected[1]
    assert is_right(replace(text, answer=[png(image)]), [image])
    other = image.copy()
    other[3, 4, 1] ^= 1
    assert is_right(replace(text, answer=[png(other)]), [image])
    assert not is_right(replace(text, answer=[png(other)]), [image], tolerance=0)
    other[3, 4, 1] ^= 2
    assert not is_right(replace(text, answer=[png(other)]), [image])
    assert not is_right(replace(text, answer=[png(image), png(image)]), [image])


def png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_peer_answers_the_same_requests(tiny_folder: Path, requests: list, expected: list) -> None:
    client = TestClient(create_peer(Model(str(tiny_folder), "cpu", "float32")))
    greedy = next(index for index, one in enumerate(requests) if one["body"].get("temperature") == 0.0)
    said = client.post(requests[greedy]["path"], json=requests[greedy]["body"]).json()
    assert said["choices"][0]["message"]["content"] == expected[greedy][0]
    (drawing,) = client.post(requests[1]["path"], json=requests[1]["body"]).json()["data"]
    assert Image.open(io.BytesIO(base64.b64decode(drawing["b64_json"]))).size == (16, 16)
    assert client.get("/health").status_code == 200


TIMES = {"p50": 0.1, "p99": 0.2, "max": 0.3}
MEASURED: dict[str, Any] = {
    **dict.fromkeys(("wrong", "off_by_a_level", "failed", "refused", "unhealthy", "left", "exit_code"), 0),
    **dict.fromkeys(("sent", "answered", "compared", "drawn_with_previews", "drawn_without", "free_seconds"), 4),
    **dict.fromkeys(("requests_a_second", "images_a_second", "peak_mib", "start_seconds"), 6.0),
    **dict.fromkeys(("first_token", "first_preview", "health"), cast(Any, TIMES)),
    "latency": {"text": None, "image": TIMES},
    "alone": {"first_token": None, "first_preview": None},
}


def test_what_was_missed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"unimm": MEASURED, "peer": MEASURED, "ratio": 3.0}
    assert find_missed(good) == []
    show(SETTING, good)
    assert "requests a second, ratio" in capsys.readouterr().out
    bad = {"wrong": 2, "free_seconds": None, "exit_code": None, "health": {"p50": 0.1, "p99": 0.3, "max": 0.3}}
    assert len(find_missed({"unimm": MEASURED | bad, "peer": None, "ratio": 2.9})) == 5


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The server ended while it started: no model"):
        Server([sys.executable, "-S", "-c", "import sys; sys.exit('no model')"], free_port(), tmp_path / "log")


def test_what_a_killed_replica_takes_with_it() -> None:
    kill = serve_ray.Kill(at=100.0)
    times = {(95.0, 6.0): True, (95.0, 4.0): False, (102.0, 0.1): True, (110.0, 0.1): False}
    assert {time: serve_ray.fell_with(Exchange(0, False, time[0], seconds=time[1]), kill) for time in times} == times
    told = serve_ray.configuration(SETTING, {"min_replicas": 2}, 8000)
    assert told["applications"][0]["args"]["min_replicas"] == 2 and told["http_options"]["port"] == 8000
    failed = [Exchange(0, False, 95.0, FAILED, seconds=6.0), Exchange(0, False, 110.0, REFUSED, seconds=0.1)]
    answers = [Exchange(0, False, 95.0, ANSWERED, answer=[text]) for text in ("yes", "no")]
    judged = {"compared": 2, "wrong": 1, "failed_with_replica": 1, "failed_otherwise": 1}
    assert serve_ray.judge([*failed, *answers], [["yes"]], kill) == judged
