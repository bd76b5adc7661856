"""The plug-in in lmms-eval itself, by its own command on a small local task; skipped where that is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unimm.data.worlds.shapes import ShapesWorld

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: it pins wandb and av, so it has an environment of its own")

NUM_ITEMS = 12

TASK = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
task: {name}
output_type: {output_type}
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.{target}
process_results: !function utils.{results}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""

UTILS = """
import json
from pathlib import Path
from PIL import Image

def visual(doc):
    return [Image.open(path).convert("RGB") for path in doc["images"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def target(doc):
    return doc["answer"]

def exact(doc, results):
    return {"exact": float(results[0].strip(" .").lower() == doc["answer"].lower())}

def nothing(doc):
    return []

def drawn(doc, results):
    told = json.loads(results[0])
    return {"drawn": float(told["text"] == "" and all(Path(path).is_file() for path in told["images"]))}

def choices(doc):
    return doc["choices"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of lmms-eval on the shapes world: questions, two images, drawings, and a choice by log-likelihood."""
    root = tmp_path_factory.mktemp("tasks")
    entries = []
    for record in ShapesWorld("test", NUM_ITEMS):
        question = next(one for one in record.questions if one.language == "en")
        path = root / f"{len(entries)}.png"
        Image.fromarray(record.image).save(path)
        words = [question.answer, "seventeen"]
        entries.append({"images": [str(path)], "question": question.text, "answer": question.answer, "choices": words})
    data = root / "items.json"
    data.write_text(json.dumps(entries))
    two = root / "two.json"
    two.write_text(json.dumps([{**entries[0], "images": entries[0]["images"] + entries[1]["images"]}]))
    (root / "utils.py").write_text(UTILS)
    common = {"output_type": "generate_until", "target": "target", "results": "exact", "metric": "exact"}
    (root / "ask.yaml").write_text(TASK.format(data=data, name="unimm_ask", **common))
    (root / "two.yaml").write_text(TASK.format(data=two, name="unimm_two", **common))
    draws = TASK.format(data=two, name="unimm_draw", **{**common, "results": "drawn", "metric": "drawn"})
    (root / "draw.yaml").write_text(draws.replace("utils.visual", "utils.nothing"))
    choice = TASK.format(data=data, name="unimm_choice", **{**common, "output_type": "multiple_choice", "metric": "acc"})
    (root / "choice.yaml").write_text(
        choice.replace("process_results: !function utils.exact\n", "doc_to_choice: !function utils.choices\n")
    )
    return root


def run(folder: Path, out: Path, tasks: str, arguments: str, *more: str) -> dict[str, dict]:
    """lmms-eval's own command; the results of every task."""
    words = [
        "--model",
        "unimm",
        "--model_args",
        f"pretrained=demo,{arguments}",
        "--tasks",
        tasks,
        "--include_path",
        str(folder),
    ]
    command = [sys.executable, "-m", "lmms_eval", *words, "--batch_size", "8", "--output_path", str(out), *more]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hub"), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env, cwd=out)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    written = list(out.rglob("*_results.json"))
    assert written, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(written[0].read_text())["results"]


def test_questions_and_several_images(folder: Path, tmp_path: Path) -> None:
    results = run(folder, tmp_path, "unimm_ask,unimm_two", "dtype=float32", "--log_samples")
    assert results["unimm_ask"]["exact,none"] >= 0.8, results
    assert "exact,none" in results["unimm_two"]


def test_drawings_come_as_json(folder: Path, tmp_path: Path) -> None:
    results = run(folder, tmp_path, "unimm_draw", f"mode=generation,image_folder={tmp_path / 'drawn'}")
    assert results["unimm_draw"]["drawn,none"] == 1
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1


def test_choices_are_made_by_likelihood(folder: Path, tmp_path: Path) -> None:
    results = run(folder, tmp_path, "unimm_choice", "dtype=float32", "--force_simple")
    assert results["unimm_choice"]["acc,none"] >= 0.8, results
