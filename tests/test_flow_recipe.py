"""The recipe of flows: its program and its shell line of drawing run with a tiny model that draws by one."""

from pathlib import Path

import pytest
from flows import make_engine
from test_readme import RECIPES, TINY_RUN, execute, fenced, fenced_lines, run

from unimm.checkpoints.bundle import ModelBundle
from unimm.inference.engine import Engine

pytestmark = pytest.mark.usefixtures("small_windows", "configurations_read_once")


def test_its_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_engine().save("runs/flow/model")
    (example,) = fenced(RECIPES / "flow.md", "python")
    names: dict = {}
    execute(example, names)
    assert names["image"].size == (16, 16) and Path("flow.png").is_file() and names["progress"].is_final
    (line,) = [line for line in fenced_lines(RECIPES / "flow.md") if line.startswith("unimm generate")]
    run(line, "--device", "cpu")
    assert len([*Path("runs/flowed").glob("*.png")]) == 1


@pytest.mark.slow
def test_its_trainings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line from the image tokenizer to the scores, with a few pictures and a step or two."""
    monkeypatch.chdir(tmp_path)
    drawn = ("old_shapes_draw", "old_count", "old_digits_draw", "flow")
    few = [f"data.sources.{name}.dataset.dataset.num_records=4" for name in drawn]
    talk = [f"data.sources.{name}.view.num_turns=1" for name in ("old_shapes_talk", "old_digits_talk")]
    small = {
        "train-tokenizer": [
            *("images.batch_size=2", "num_validation=2", "device=cpu", "tokenizer_trainer.budget.max_minutes=null"),
            "tokenizer_trainer.budget.max_steps=1",
        ],
        "encode": [*TINY_RUN["encode"], *few],
        "train": [*TINY_RUN["train"], *few, *talk, "trainer.budget.max_minutes=null"],
    }
    for line in fenced_lines(RECIPES / "flow.md"):
        monkeypatch.setattr("sys.argv", ["unimm"])
        verb = line.split()[1]
        if verb in small:
            run(line, *small[verb])
    bundle = ModelBundle.load("runs/flow/model")
    assert bundle.drawing_ways == ("codes", "latents") and bundle.latents_tokenizer is not None
    (image,) = Engine(bundle).generate_images("a red circle", drawing="latents", steps=1)
    assert image.size == (64, 64)
