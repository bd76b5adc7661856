"""`unimm bench projectors`: what an image costs is what the engine plans with and keeps, beside the scores of its run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unimm.bench.projectors import find_models
from unimm.cli.app import app
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.models.vision.projectors import ProjectorConfig
from unimm.runtime.atomic_files import write_json


@pytest.fixture
def runs(tiny_engine: Engine, tmp_path: Path) -> Path:
    """Two runs: four positions an image, and one. One of them was evaluated."""
    for kind in ("mlp", "pixel_shuffle"):
        torch.manual_seed(0)
        model = UnifiedModel(replace(tiny_engine.model.config, projector=ProjectorConfig(kind))).eval()
        (tmp_path / f"runs/{kind}-0").mkdir(parents=True)
        replace(tiny_engine.bundle, model=model).save(tmp_path / f"runs/{kind}-0/model")
    (tmp_path / "runs/mlp-0/scores").mkdir()
    write_json(tmp_path / "runs/mlp-0/scores/scores.json", {"tasks": {"shapes_answers": {"score": 0.75, "count": 4}}})
    return tmp_path / "runs"


def test_a_quarter_of_the_tokens_is_a_quarter_of_the_bytes(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "projectors.json"
    words = [str(runs), "--device", "cpu", "--repeats", "2", "--batch", "2", "--out", str(out)]
    result = CliRunner().invoke(app, ["bench", "projectors", *words])
    assert result.exit_code == 0, result.output
    mlp, shuffled = json.loads(out.read_text())["measured"]
    assert (mlp["projector"], mlp["positions"], mlp["patches"], mlp["scores"]) == ("mlp", 4, 4, {"shapes_answers": 0.75})
    assert (shuffled["projector"], shuffled["positions"], shuffled["scores"]) == ("pixel_shuffle", 1, {})
    # Keys and values, 2 layers, 4 heads of 16, in the float32 of a CPU's cache.
    assert mlp["kv_bytes"] == 4 * shuffled["kv_bytes"] == 4 * 2 * 2 * 4 * 16 * 4
    assert mlp["prefill_ms"] > 0 and "0.750" in result.output and "1 of 4" in result.output


def test_a_run_s_model_is_called_by_its_run(runs: Path) -> None:
    named = [str(runs / "mlp-0/model"), str(runs / "pixel_shuffle-0/model")]
    assert find_models(named) == dict(zip(("mlp-0", "pixel_shuffle-0"), named, strict=True)) == find_models([str(runs)])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert find_models(["demo"]) == {"demo": "demo"}
    with pytest.raises(ValueError, match="is no model's folder and holds no runs with one"):
        find_models([str(tmp_path)])
