"""What is implied is not asked for: an image tokenizer by the model to start from, codes by nobody who reads none."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from users_files import make_all

from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.cli.app import app
from unimm.cli.builders import open_image_tokenizer
from unimm.cli.compose import compose_config, run_with_hydra
from unimm.cli.learner import check_start, open_learner
from unimm.models.unified import UnifiedModel

PHOTOS = ["data=image_folder", "data.folder=photos", "device=cpu"]

pytestmark = pytest.mark.usefixtures("configurations_read_once")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_all(tmp_path))
    monkeypatch.setattr(sys, "argv", ["unimm"])
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    return tmp_path


def test_a_model_to_start_from_has_an_image_tokenizer(tiny_folder: Path) -> None:
    """For `encode` as for `train`, so that both take the same overrides."""
    named, implied = (compose_config("encode", [f"{key}={tiny_folder}"]) for key in ("image_tokenizer", "init_from"))
    assert fingerprint(open_image_tokenizer(named)) == fingerprint(open_image_tokenizer(implied))
    assert CliRunner().invoke(app, ["encode", *PHOTOS, f"init_from={tiny_folder}", "out=codes"]).exit_code == 0
    open_learner(compose_config("train", [*PHOTOS, f"init_from={tiny_folder}", "codes=codes", "trainer.num_positions=256"]))
    for root in ("encode", "train"):
        with pytest.raises(ValueError, match="The key 'image_tokenizer' has no value yet"):
            open_image_tokenizer(compose_config(root, []))


@pytest.mark.parametrize(
    "overrides", [["data=llava", "data.paths=a"], ["data=text", "data.paths=a"], [*PHOTOS, "~data.sources.draw"]]
)
def test_codes_are_only_needed_where_they_are_read(overrides: list[str]) -> None:
    check_start(compose_config("train", ["image_tokenizer=x", *overrides]))


def test_codes_that_are_needed_are_asked_for_with_what_needs_them() -> None:
    with pytest.raises(ValueError) as refused:
        check_start(compose_config("train", ["image_tokenizer=x"]))
    assert str(refused.value) == (
        "The sources shapes_draw, digits_draw of this data read stored codes: add codes=FOLDER, which `unimm encode` writes "
        "with the same data=..., or leave them out: '~data.sources.shapes_draw' '~data.sources.digits_draw'."
    )
    check_start(compose_config("train", ["image_tokenizer=x", "~data.sources.shapes_draw", "~data.sources.digits_draw"]))


EXPERIMENT = """# @package _global_
defaults:
  - override /model: demo
model:
  {sizes}
"""


def learn(place: Path, sizes: str, *overrides: str) -> UnifiedModel:
    """The model of a training with an experiment that sets sizes in its file."""
    (place / "mine/experiment").mkdir(parents=True, exist_ok=True)
    (place / "mine/experiment/own.yaml").write_text(EXPERIMENT.format(sizes=sizes), encoding="utf-8")
    words = ["--config-dir", "mine", "+experiment=own", *PHOTOS, "~data.sources.draw", "stage=align", *overrides]
    models: list[UnifiedModel] = []
    run_with_hydra("train", lambda config: models.append(open_learner(config).bundle.model), words)
    return models[0]


def test_sizes_of_a_file_that_would_not_be_used_are_refused(
    place: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of the command line. An option of the group is no such size, nor is one that the model has anyway."""
    start = f"init_from={tiny_folder}"
    assert learn(place, "projector: {depth: 2}", start).config.projector.depth == 2
    with pytest.raises(SystemExit):
        learn(place, "projector: {depth: 1}", start)
    error = capsys.readouterr().err
    assert error.startswith("unimm: model.projector.depth=1 is not used, since ") and "fresh_parts=[projector]" in error
    assert learn(place, "projector: {depth: 1}", start, "fresh_parts=[projector]").config.projector.depth == 1
