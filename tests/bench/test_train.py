"""`unimm bench train`: both peers learn the same conversations, and only real tokens count."""

import json
from pathlib import Path

import pytest
from PIL import Image
from trials_in_forks import forked_trials  # noqa: F401  a fixture
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.bench.train import run


@pytest.mark.usefixtures("forked_trials")
def test_both_learn_to_see(tmp_path: Path) -> None:
    words = ["bench", "train", "--model", "demo", "--device", "cpu", "--precision", "no", "--no-compile"]
    words += [
        "--samples",
        "4",
        "--positions",
        "512",
        "--steps",
        "2",
        "--warm-up",
        "1",
        "--attention",
        "sdpa",
        "--out",
        str(tmp_path / "train.json"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "train.json").read_text())
    assert [one["who"] for one in told["measured"]] == ["unimm", "transformers", "unimm, unpacked", "unimm, sdpa"]
    for one in told["measured"]:
        assert one["tokens_a_second"] > one["images_a_second"] > 0 and one["ms_a_step"] > 0 and one["peak_gib"] > 0
        assert 0.3 < one["fill"] <= 1
        # Who begins from the demo model knows most of it; a mistake in what is learned would cost several nats.
        assert 0 < one["loss"] < 0.5
        per_image = one["tokens_a_second"] / one["images_a_second"]
        assert 80 < per_image < 260, "an image's conversation takes about 180 tokens"
    assert {"command", "commit", "device", "torch", "transformers"} <= set(told["provenance"])
    with Image.open(tmp_path / "train.png") as picture:
        assert picture.width > 300


def test_a_model_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="There is no model 'nobody'"):
        run("nobody", "cpu", "no", (4, 512, 2, 1), False, [], 1, Path("nowhere.json"))
    with pytest.raises(ValueError, match="Unknown attention 'some': use sdpa"):
        run("demo", "cpu", "no", (4, 512, 2, 1), False, ["some"], 1, Path("nowhere.json"))
