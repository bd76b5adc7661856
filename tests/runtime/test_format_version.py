"""What a newer unimm wrote is refused in one sentence, never misread nor overwritten; without a version it is the first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer
from safetensors.torch import save_file
from toys import make_mixture

from unimm.checkpoints.folder import load_model
from unimm.checkpoints.image_tokenizer_folder import load_image_tokenizer, save_image_tokenizer
from unimm.cli.quickstart import quickstart
from unimm.data.packing import RowLayout
from unimm.data.stored_plan import StoredPlan, store_plan
from unimm.data.stores.codes import CodesManifest, StoredCodes, save_codes
from unimm.data.stores.features import FeaturesManifest, StoredFeatures, finish_features, put_rows, unfinished_features
from unimm.inference.engine import Engine
from unimm.training.checkpoint import Checkpoint, load_checkpoint
from unimm.training.checkpoint_writer import save_checkpoint

LAYOUT = RowLayout(64, 9)


def write_codes(folder: Path) -> None:
    manifest = CodesManifest(2, "squares", "0", "1", "", "hash", "float32", 16, 4, 32, "0")
    save_codes(folder, np.zeros((2, 4), dtype=np.int64), manifest)


def write_features(folder: Path) -> None:
    manifest = FeaturesManifest(1, "talk", "0", "0", "", "hash", "way", "no", "float32", 16, 4, 8, 1, 1, "0")
    unfinished = unfinished_features(folder, manifest)
    unfinished.begin()
    unfinished.save(0, lambda path: save_file({"features": torch.zeros(1, 4, 8)}, path))
    put_rows(unfinished, np.zeros(1, dtype=np.int64))
    finish_features(unfinished, manifest)


FORMS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], str]] = {
    "codes": (write_codes, StoredCodes.open, "manifest.json"),
    "features": (write_features, StoredFeatures.open, "manifest.json"),
    "plan": (
        lambda folder: store_plan(folder, make_mixture(), LAYOUT, 1),
        lambda folder: StoredPlan(folder, make_mixture(), LAYOUT),
        "plan.json",
    ),
    "checkpoint": (
        lambda folder: save_checkpoint(folder, Checkpoint(3, {"weights/a": torch.ones(2)}, {"stage": "pretrain"})),
        load_checkpoint,
        "step-00000003/manifest.json",
    ),
    "image tokenizer": (
        lambda folder: save_image_tokenizer(folder, tiny_image_tokenizer()),
        load_image_tokenizer,
        "config.json",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_a_version(form: str, tmp_path: Path) -> None:
    write, read, name = FORMS[form]
    folder = tmp_path / "it"
    write(folder)
    content = json.loads((folder / name).read_text())
    key = "version" if form == "plan" else "format_version"
    newest = {"features": 1, "image tokenizer": 1, "plan": 3}.get(form, 2)  # images of a record, files of a checkpoint
    assert content[key] == 1 and read(folder) is not None
    (folder / name).write_text(json.dumps({**content, key: newest + 1}))
    told = rf"{key} {newest + 1}, this one reads up to {newest}\): update it with `pip install -U unimm`"
    with pytest.raises(ValueError, match=told):
        read(folder)
    if form != "plan":  # which always had one
        del content[key]
        (folder / name).write_text(json.dumps(content))
        assert read(folder) is not None


def test_models_and_quickstarts_have_one_too(tiny_engine: Engine, tmp_path: Path) -> None:
    tiny_engine.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["unimm"]["version"] == 1
    config["unimm"]["version"] = 2
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json was written by a newer unimm \(version 2"):
        load_model(tmp_path / "model")
    (tmp_path / "quickstart.json").write_text(json.dumps({"seed": 0, "minutes": 5, "from_nothing": False, "format_version": 2}))
    with pytest.raises(ValueError, match=r"quickstart.json was written by a newer unimm"):
        quickstart(tmp_path, 0, 5, device="cpu")
