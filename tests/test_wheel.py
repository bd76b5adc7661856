"""The wheel: what pip installs elsewhere carries the configurations, and a model's whole life runs in any folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable, "-m"]
UNIMM = [sys.executable, "-c", "from unimm.cli import main; main()"]
SMALL_TOKENIZER = ["tokenizer.channel_multipliers=[1,1,1,1]", "tokenizer.num_res_blocks=1", "images.batch_size=4"]
SMALL_RUN = ["tokenizer_trainer.budget.max_steps=2", "num_validation=4", "tokenizer_trainer.num_workers=0"]
SMALL_DATA = [
    "data.sources.shapes_draw.dataset.dataset.num_records=8",
    "data.sources.digits_draw.dataset.dataset.num_records=4",
    *(f"data.sources.{name}.dataset.num_records=40" for name in ("shapes_talk", "digits_talk", "shapes_text")),
]
SMALL_MODEL = [
    "whitened_images=8",
    "model.trunk.num_hidden_layers=1",
    "model.vision.num_layers=1",
    "trainer.num_rows=5",
    "trainer.num_workers=0",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(ROOT)]
    subprocess.run(pip, check=True, timeout=300)
    return folder


def run(site: Path, folder: Path, *words: str) -> str:
    """Run it in a folder with the wheel in front of everything; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow(seconds=20)
def test_an_installed_wheel_finds_its_configurations(site: Path, tmp_path: Path) -> None:
    assert (site / "unimm/conf/train.yaml").is_file()
    assert (site / "unimm/demo/digit.png").is_file() and (site / "unimm/demo/model.safetensors").is_file()
    for kind in ("*.cpp", "*.h"):  # compiled where they are needed
        own = {path.relative_to(ROOT) for path in (ROOT / "unimm").rglob(kind)}
        assert own and own == {path.relative_to(site) for path in site.rglob(kind) if path.is_relative_to(site / "unimm")}
    assert {path.name for path in site.rglob("LICENSE")} | {path.name for path in site.rglob("NOTICE")} == {"LICENSE", "NOTICE"}
    code = "import unimm.cli.choices as conf; print(conf.conf_folder())"
    assert Path(run(site, tmp_path, sys.executable, "-c", code).strip()) == site / "unimm/conf"
    assert "seed: 7" in run(site, tmp_path, *UNIMM, "train", "--cfg", "job", "seed=7")


@pytest.mark.slow(seconds=70)
def test_an_installed_wheel_trains_from_any_folder(site: Path, tmp_path: Path) -> None:
    """A model's life as the README tells it, at toy size; the last line again by a launcher, in shards."""
    run(site, tmp_path, *UNIMM, "train-tokenizer", "out=runs/tokenizer", *SMALL_TOKENIZER, *SMALL_RUN)
    given = ["image_tokenizer=runs/tokenizer/model", *SMALL_DATA]
    launcher = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    encoded = run(site, tmp_path, *launcher, "unimm.cli.encode", "out=runs/codes", *given)
    assert sorted(word for word in encoded.split() if "/" in word) == ["runs/codes/digits", "runs/codes/shapes"]
    words = ["codes=runs/codes", *given, *SMALL_MODEL, "trainer.report_every=1", "trainer.sample_every=2"]
    words += ["trainer.precision=no"]  # so that losses can be compared closely
    run(site, tmp_path, *UNIMM, "train", "out=runs/unified", "trainer.budget.max_steps=2", *words)
    words += ["trainer.sharding.strategy=fsdp", "trainer.validate_every=2", "validation.num_items=1"]
    run(site, tmp_path, *launcher, "unimm.train", "out=runs/together", "trainer.budget.max_steps=2", *words)
    alone, together = (
        [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("unified", "together")
    )
    assert "validation/mean" in together.pop() and (tmp_path / "runs/together/best/validation.json").is_file()
    assert [line["step"] for line in alone] == [line["step"] for line in together] == [1, 2]
    for one, other in zip(alone, together, strict=True):
        assert other["loss/codes"] == pytest.approx(one["loss/codes"], abs=1e-4)
        assert other["loss/text"] == pytest.approx(one["loss/text"], abs=1e-4)
    assert {path.name for path in (tmp_path / "runs/together/samples").iterdir()} == {
        "00000002-captions.txt",
        "00000002-drawings.png",
    }
    drawing = next((tmp_path / "runs/together/samples").glob("*.png"))
    run(site, tmp_path, *UNIMM, "caption", str(drawing), "--model", "runs/together/model")
