"""DeepSeek's loop as a peer: its function is found in its file and timed; their classes are stood in for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trials_in_forks import forked_trials  # noqa: F401  a fixture
from typer.testing import CliRunner

from unimm.bench import deepseek
from unimm.cli.app import app

SCRIPT = """
import torch
raise_if_run = 1 / 0

@torch.inference_mode()
def generate(mmgpt, vl_chat_processor, prompt, parallel_size=16, cfg_weight=5, image_token_num_per_image=576):
    ids = torch.LongTensor(vl_chat_processor.tokenizer.encode(prompt)).cuda()
    for _ in range(3):
        mmgpt.prepare_gen_img_embeds(ids)
    mmgpt.gen_vision_model.decode_code(torch.zeros(parallel_size))
"""

MODELS = """
import torch

class Vision(torch.nn.Module):
    def decode_code(self, codes):
        return codes

class MultiModalityCausalLM(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.words["language_config"]["hidden_size"] == 64 and config.words["gen_vision_config"]["cls"] == "VQ-16"
        self.gen_vision_model = Vision()
    def prepare_gen_img_embeds(self, ids):
        return ids
"""

CONFIG = "class MultiModalityConfig:\n    def __init__(self, **words):\n        self.words = words\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone as far as the benchmark looks into it."""
    models = tmp_path / "clone" / "janus" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    (models / "__init__.py").write_text(MODELS)
    (models / "modeling_vlm.py").write_text(CONFIG)
    (tmp_path / "clone" / "generation_inference.py").write_text(SCRIPT)
    return tmp_path / "clone"


def test_the_function_alone_is_run_and_timed(repository: Path, tiny_folder: Path) -> None:
    trial = {"device": "cpu", "dtype": "float32", "folder": str(tiny_folder), "num_images": 2, "guidance_scale": 5.0}
    command = [sys.executable, deepseek.__file__, str(repository), json.dumps(trial)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured = json.loads(told)
    assert 0 <= measured["first_seconds"] <= measured["seconds"]
    assert measured["ms_a_step"] == pytest.approx(1e3 * measured["seconds"] / 576)
    assert measured["images_a_second"] == pytest.approx(2 / measured["seconds"])


@pytest.mark.usefixtures("forked_trials")
def test_it_stands_in_the_table(repository: Path, tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "generate", "--model", tiny_folder, "--dtype", "float32", "--device", "cpu", "--batch", 1, "--deepseek"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, repository, "--out", tmp_path / "told.json"]])
    assert result.exit_code == 0, result.output
    assert [one["who"] for one in json.loads((tmp_path / "told.json").read_text())["measured"]] == [
        "unimm", "transformers", "deepseek",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in [*words, tmp_path]])
    assert result.exit_code == 2 and "generation_inference.py is missing" in result.output + result.stderr
