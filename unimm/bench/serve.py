"""How a server does under load: is every answer the engine's own, how long do clients wait, how many requests a second.

`unimm serve` runs as a process, and its clients (`serve_clients`) as another: questions about images and drawings, streamed or
not, all with a seed; some clients hang up in the middle. Each answer is then compared with what an engine gives for the same
seed: texts to the letter, images to the pixel, but for one level of 255. (Codes are the same in any batch. The sums with which
they become pixels are not so to the last bit, where other threads of the process multiply matrices, too.) At the end all rows
of the engine must be free, and SIGTERM must end the server. The same requests then go to the peer (`serve_peer`): not streamed,
and with clients that stay, for leaving would cost it work.
"""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from unimm.bench.serve_clients import ANSWERED, FAILED, LEFT, REFUSED, Exchange, Load
from unimm.bench.server_process import Server, Watch, free_port
from unimm.data.worlds.shapes import ShapesWorld
from unimm.inference.engine import Engine

UNIMM = [sys.executable, "-c", "from unimm.cli import main; main()"]
MAX_NEW_TOKENS, TEMPERATURE = 32, 0.8


@dataclass(frozen=True)
class Setting:
    """One trial.

    Args:
        model: a model folder, or a hub id. device, dtype: of both servers.
        num_clients, seconds, disconnects: as `Load` has them. peer_seconds: of the peer's load; 0: there is no peer.
        num_requests: different ones of each kind, which are sent again and again.
    """

    model: str
    device: str
    dtype: str
    num_clients: int = 32
    seconds: float = 180.0
    disconnects: float = 0.1
    peer_seconds: float = 60.0
    num_requests: int = 48
    seed: int = 0


def make_requests(setting: Setting) -> list[dict[str, Any]]:
    """The requests, {"path", "body"}: every other one a question about an image, or else a drawing; some of two images."""
    world = ShapesWorld("test", num_records=setting.num_requests, seed=setting.seed)
    requests: list[dict[str, Any]] = []
    for index in range(setting.num_requests):
        record, seed = world[index], 1000 * setting.seed + index
        file = io.BytesIO()
        Image.fromarray(np.asarray(record.image)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        question = record.questions[0].text if index % 2 else "Describe the image."
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        chat = {"messages": [{"role": "user", "content": parts}], "max_tokens": MAX_NEW_TOKENS, "seed": seed}
        chat["temperature"] = TEMPERATURE if index % 3 == 0 else 0.0
        drawing = {"prompt": record.captions[0].text, "n": 2 if index % 6 == 5 else 1, "seed": seed}
        requests += [{"path": "/v1/chat/completions", "body": chat}, {"path": "/v1/images/generations", "body": drawing}]
    return requests


def expect(engine: Engine, requests: list[dict[str, Any]], report: Callable[[str], None]) -> list[list[Any]]:
    """What the engine answers to each: [text], or arrays (H, W, 3) uint8."""
    report(f"What the engine gives for {len(requests)} requests")
    expected: list[list[Any]] = [[] for _ in requests]
    drawings: dict[int, list[int]] = {}  # requests by their number of images
    for index, body in enumerate(request["body"] for request in requests):
        if "prompt" in body:
            drawings.setdefault(body["n"], []).append(index)
        else:
            sampling = {"temperature": body["temperature"], "seed": body["seed"]}
            expected[index] = [engine.complete(body["messages"], body["max_tokens"], **sampling).text]
    for count, indices in drawings.items():
        bodies = [requests[index]["body"] for index in indices]
        drawn = engine.generate_images([one["prompt"] for one in bodies], count, [one["seed"] for one in bodies])
        for index, images in zip(indices, drawn, strict=True):
            expected[index] = [np.asarray(image) for image in images]
    return expected


def is_right(exchange: Exchange, expected: list[Any], tolerance: int = 1) -> bool:
    """Whether an answer is the engine's own. tolerance: levels of 255 that pixels may differ by."""
    if len(exchange.answer) != len(expected):
        return False
    pairs = zip(exchange.answer, expected, strict=True)
    return all(
        answer.strip() == one.strip() if isinstance(one, str) else _levels(answer, one).max() <= tolerance
        for answer, one in pairs
    )


def _levels(answer: str, expected: np.ndarray) -> np.ndarray:
    """How far each value (H, W, 3) of a picture in base64 is from what it should be; 255 where sizes differ."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer))).convert("RGB"), dtype=np.int16)
    return np.abs(image - expected) if image.shape == expected.shape else np.full_like(image, 255)


def run_load(load: Load) -> list[Exchange]:
    """A load in a process of its own. ValueError: it failed."""
    command = [sys.executable, "-m", "unimm.bench.serve_clients", json.dumps(asdict(load))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"The clients failed: {(done.stderr.strip().splitlines() or ['they said nothing'])[-1]}")
    return [Exchange(**one) for one in json.loads(Path(load.out).read_text(encoding="utf-8"))]


def measure(setting: Setting, engine: Engine, peer_folder: str, logs: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The whole trial.

    Args:
        engine: that knows the right answers; on the same device and in the same dtype.
        peer_folder: the model's folder, as transformers opens it. logs: a folder for what the servers print.

    Returns:
        `unimm`, `peer` (None without one) and `ratio` of their requests a second.
    """
    requests = make_requests(setting)
    expected = expect(engine, requests, report)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "requests.json"
        file.write_text(json.dumps(requests), encoding="utf-8")
        out = str(Path(folder) / "exchanges.json")

        def load(server: Server, **more: Any) -> Load:
            return Load(server.address, str(file), out, seed=setting.seed, **more)

        told, exchanges, alone = _measure_ours(setting, load, logs, report)
        told |= summarize(exchanges, requests, setting.seconds) | {"alone": _first(alone, requests)}
        answered = [one for one in [*alone, *exchanges] if one.outcome == ANSWERED]
        wrong = [one for one in answered if not is_right(one, expected[one.request])]
        rounded = [one for one in answered if one not in wrong and not is_right(one, expected[one.request], 0)]
        told |= {"compared": len(answered), "wrong": len(wrong), "off_by_a_level": len(rounded)}
        told["examples_of_wrong"] = [_shown(one, expected[one.request]) for one in wrong[:3]]
        peer = None
        if setting.peer_seconds:
            peer, exchanges = _measure_peer(setting, load, peer_folder, logs, report)
            peer |= summarize(exchanges, requests, setting.peer_seconds)
    ratio = None if peer is None else told["requests_a_second"] / max(peer["requests_a_second"], 1e-9)
    return {"unimm": told, "peer": peer, "ratio": ratio}


def _measure_ours(
    setting: Setting, load: Callable[..., Load], logs: Path, report: Callable[[str], None]
) -> tuple[dict[str, Any], list[Exchange], list[Exchange]]:
    """What was seen of the server; the exchanges under load, and those of one client alone before it."""
    port = free_port()
    words = ["serve", setting.model, "--port", str(port), "--no-page", "--device", setting.device, "--dtype", setting.dtype]
    report("Starting unimm serve")
    server = Server([*UNIMM, *words], port, logs / "unimm.log")
    try:
        report("One client alone")
        one = {"num_clients": 1, "seconds": 600.0, "disconnects": 0.0, "streams": 1.0}
        run_load(load(server, **one, num_requests=4))  # warms up
        alone = run_load(load(server, **one, num_requests=24))
        report(f"{setting.num_clients} clients for {setting.seconds:.0f} seconds")
        many = {"num_clients": setting.num_clients, "seconds": setting.seconds, "disconnects": setting.disconnects}
        with server.watched() as watch:
            exchanges = run_load(load(server, **many))
        free = server.seconds_until_free()
    finally:
        ended = server.end()
    seen = {"start_seconds": server.start_seconds, "free_seconds": free, **ended, **_watched(watch)}
    return seen, exchanges, alone


def _measure_peer(
    setting: Setting, load: Callable[..., Load], folder: str, logs: Path, report: Callable[[str], None]
) -> tuple[dict[str, Any], list[Exchange]]:
    port = free_port()
    report("Starting the peer")
    words = ["unimm.bench.serve_peer", folder, setting.device, setting.dtype, str(port)]
    server = Server([sys.executable, "-m", *words], port, logs / "peer.log")
    try:
        alike = {"disconnects": 0.0, "streams": 0.0}
        run_load(load(server, **alike, num_clients=1, seconds=600.0, num_requests=4))
        report(f"The peer, {setting.num_clients} clients for {setting.peer_seconds:.0f} seconds")
        with server.watched() as watch:
            many = {"num_clients": setting.num_clients, "seconds": setting.peer_seconds}
            exchanges = run_load(load(server, **alike, **many, drain=False))
    finally:
        server.process.kill()  # it would finish what clients no longer wait for
        server.process.wait()
    return {"start_seconds": server.start_seconds, **_watched(watch)}, exchanges


def summarize(exchanges: list[Exchange], requests: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Counts, requests a second (answered within the time), and latencies of each kind: p50 and p99 in seconds."""
    answered = [one for one in exchanges if one.outcome == ANSWERED]
    end = min((one.sent_at for one in exchanges), default=0.0) + seconds
    in_time = [one for one in answered if one.sent_at + one.seconds <= end]
    kinds = {"text": [one for one in answered if not _draws(one, requests)]}
    kinds["image"] = [one for one in answered if _draws(one, requests)]
    failures = [one for one in exchanges if one.outcome in (FAILED, REFUSED)]
    return {
        "sent": len(exchanges),
        **{outcome: sum(one.outcome == outcome for one in exchanges) for outcome in (ANSWERED, LEFT, REFUSED, FAILED)},
        "examples_of_failures": [f"{one.status} {one.error}" for one in failures[:3]],
        "requests_a_second": len(in_time) / seconds,
        "images_a_second": sum(len(one.answer) for one in in_time if _draws(one, requests)) / seconds,
        "latency": {kind: percentiles([one.seconds for one in them]) for kind, them in kinds.items()},
        **_first(exchanges, requests),
        "drawn_with_previews": sum(one.first is not None for one in kinds["image"]),
        "drawn_without": sum(not one.streamed for one in kinds["image"]),
    }


def _first(exchanges: list[Exchange], requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds to the first token and to the first preview of what was streamed."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for one in exchanges:
        if one.first is not None and one.outcome == ANSWERED:
            seconds[_draws(one, requests)].append(one.first)
    return {"first_token": percentiles(seconds[False]), "first_preview": percentiles(seconds[True])}


def percentiles(values: list[float]) -> dict[str, float] | None:
    """p50, p99 and the largest; None of nothing."""
    if not values:
        return None
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99)), "max": max(values)}


def _watched(watch: Watch) -> dict[str, Any]:
    health = {"health": percentiles(watch.health), "unhealthy": watch.unhealthy}
    return {**health, "peak_mib": watch.peak_bytes / 2**20, "cpu_seconds": watch.cpu_seconds}


def _draws(exchange: Exchange, requests: list[dict[str, Any]]) -> bool:
    return "prompt" in requests[exchange.request]["body"]


def _shown(exchange: Exchange, expected: list[Any]) -> dict[str, Any]:
    """A wrong answer, for a person."""
    told: dict[str, Any] = {"request": exchange.request, "streamed": exchange.streamed}
    if len(exchange.answer) != len(expected):
        return told | {"differs": f"{len(exchange.answer)} answers, not {len(expected)}"}
    if isinstance(expected[0], str):
        return told | {"answer": exchange.answer[0][:500], "expected": expected[0]}
    levels = [_levels(answer, one) for answer, one in zip(exchange.answer, expected, strict=True)]
    return told | {"differs": [f"{(one > 0).any(-1).sum()} pixels by up to {one.max()} of 255" for one in levels]}
