"""The quickstart as a story: begun, interrupted, gone on with, finished; at toy length, with everything it leaves behind."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from forks import Fork, run_fork
from janus_cases import draw
from transformers import AutoProcessor, JanusForConditionalGeneration
from typer.testing import CliRunner

import unimm
from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.checkpoints.weight_files import DEMO
from unimm.cli.app import app

pytestmark = [pytest.mark.slow(seconds=60), pytest.mark.usefixtures("small_windows", "few_texts")]

RUN = [sys.executable, "-c", "from unimm.cli import main; main()"]


def words_of(out: Path, minutes: float, *more: str) -> list[str]:
    return ["quickstart", "--minutes", str(minutes), "--out", str(out), *more]


def refused(words: list[str]) -> str:
    """What is said of a folder that cannot be gone on with."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    return result.stderr


def assert_transformers_draws_the_same(model: Path) -> None:
    theirs = JanusForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model)
    message = {"role": "user", "content": [{"type": "text", "text": "a red circle"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=[prompt], generation_mode="image", return_tensors="pt")
    engine = unimm.load(model, device="cpu", dtype="float32")
    assert torch.equal(draw(theirs, inputs), engine.generate_codes("a red circle", temperature=0.0, guidance_scale=5.0))


def assert_only_these_were_taken(model: Path) -> None:
    """Vision tower and image tokenizer are the demo's, nothing else is."""
    ours, demo = load_model(model, dtype=torch.float32), load_model(DEMO, dtype=torch.float32)
    for part, module in ours.model.parts().items():
        pairs = zip(module.parameters(), demo.model.parts()[part].parameters(), strict=False)
        assert all(torch.equal(one, other) for one, other in pairs) == (part == "vision"), part
    assert fingerprint(ours.image_tokenizer) == fingerprint(demo.image_tokenizer)


def test_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    said = tmp_path / "complaints"
    with said.open("w") as complaints:
        first = Fork([*RUN, *words_of(out, 0.5)], complaints, complaints)
    metrics = out / "unified" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.is_file() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    assert first.wait(120) == 130, said.read_text()
    assert "Traceback" not in said.read_text()
    assert list((out / "unified" / "checkpoints").glob("step-*")), "an interrupted training leaves a checkpoint"

    second = run_fork([*RUN, *words_of(out, 0.5)], tmp_path, timeout=900)
    assert second.returncode == 0, second.stderr
    assert "Try next" in second.stdout
    state = json.loads((out / "quickstart.json").read_text())
    assert state["machine"]["device"] and state["plan"]["num_shapes"] and "demo" in state["started_from"]
    assert state["started_from"] in (out / "report.html").read_text(), "the page says what was taken"
    assert_only_these_were_taken(out / "model")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps), "the second run goes on where the first one stopped"
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert scores["finished"]
    assert (out / "drawings.png").stat().st_size > 1000

    engine = unimm.load(str(out / "model"))
    assert len(engine.generate_images("a red circle", num_images=2)) == 2
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["model_type"] == "janus", "the quickstart's model opens in transformers"
    assert_transformers_draws_the_same(out / "model")

    assert "choose another --out" in refused(words_of(out, 0.5, "--seed", "1"))


def test_from_nothing(tmp_path: Path) -> None:
    """Image tokenizer and vision tower are trained too; the same folder is not gone on with in the other way."""
    out = tmp_path / "quick"
    done = run_fork([*RUN, *words_of(out, 0.25, "--from-nothing")], tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert all((out / part / "metrics.jsonl").is_file() for part in ("tokenizer", "vision", "unified"))
    demo = load_model(DEMO, dtype=torch.float32)
    assert fingerprint(load_model(out / "model", dtype=torch.float32).image_tokenizer) != fingerprint(demo.image_tokenizer)
    assert "--from-nothing" in refused(words_of(out, 0.25))
