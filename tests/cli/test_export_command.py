"""unimm export and unimm score: what they write and print, and how mistakes end."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prompt_files import write_prompts
from typer.testing import CliRunner

from unimm.cli.app import app


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return write_prompts(tmp_path / "prompts")


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def refuse(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_a_benchmark_is_drawn_scored_and_tabled(files: dict[str, Path], tiny_folder: Path) -> None:
    words = ("export", "geneval", "--prompts", files["geneval"], "--model", tiny_folder, "-n", 1, "--num-prompts", 2)
    told = call(*words, "--shard", "0/1")
    assert "runs/geneval: 2 images, 2 of them drawn now, 2 prompts." in told
    assert "these are 2: scores of them are not the benchmark's" in told
    assert f"python evaluation/evaluate_images.py {Path.cwd()}/runs/geneval --outfile" in told
    assert "2 images, 0 of them drawn now" in call(*words)
    lines = (Path("runs/geneval/prompts.jsonl")).read_text().splitlines()
    results = []
    for line in map(json.loads, lines):
        said = {"filename": f"runs/geneval/{line['files'][0]}", "tag": line["facts"]["tag"], "prompt": line["prompt"]}
        results.append({**said, "correct": True, "metadata": json.dumps(line["facts"])})
    Path("runs/geneval/results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    told = call("export", "geneval", "--scores")
    assert "overall" in told and "1.0000" in told and "runs/geneval/scores.json" in told
    assert call("export", "geneval", "--scores", "runs/geneval/results.jsonl") == told
    Path("runs/geneval/results.jsonl").write_text(json.dumps(results[0]) + "\n")
    assert "1 of 2 items are missing" in refuse("export", "geneval", "--scores")
    assert "Missing: 1 of 2 items." in call("export", "geneval", "--scores", "--partial")


def test_mistakes_end_in_one_sentence(files: dict[str, Path], tiny_folder: Path) -> None:
    assert "choose one of geneval, dpg" in refuse("export", "zebra")
    assert "Name DPG-Bench's own prompts with --prompts" in refuse("export", "dpg")
    assert "this is not GenEval's form" in refuse("export", "geneval", "--prompts", files["geneval2"], "--model", "nowhere")
    assert "--shard is NUMBER/COUNT" in refuse("export", "dpg", "--prompts", files["dpg"], "--shard", "2/2")
    assert "takes one image a prompt" in refuse("export", "wise", "--prompts", files["wise"], "-n", 2, "--model", "nowhere")
    assert "Results of a scorer are named behind --scores" in refuse("export", "dpg", "results.txt")
    assert "unimm score" in refuse("export", "coco", "--scores", files["coco"])
    assert not Path("runs").exists()
    assert "Say what to score" in refuse("score", "prompts")
    told = refuse("score", "photos", "--reference", "photos", "--inception", "nowhere.pth")
    assert ("is not there: download" if find_spec("torch_fidelity") else 'pip install "unimm[eval]"') in told


@pytest.fixture(autouse=True)
def photos() -> None:
    """Six squares of noise, and an oblong."""
    noise = np.random.default_rng(0)
    for number in range(6):
        path = Path(f"photos/{number % 2}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 20 + number // 5, 3), dtype=np.uint8)).save(path)


def test_an_image_tokenizer_is_scored(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights of rFID and LPIPS a sentence says what is left out."""
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    told = call("score", "photos", "--reconstruct", "--model", tiny_folder)
    assert "rFID is left out" in told and "LPIPS is left out" in told
    known = json.loads(Path("image_scores.json").read_text())
    assert {*known["tasks"]} == {"psnr", "ssim"} and known["protocol"]["num_images"] == 6 and known["protocol"]["size"] == 16
    assert 0 < known["tasks"]["psnr"]["measures"]["codebook_usage"] <= 1 and known["tasks"]["psnr"]["standard_error"] > 0
