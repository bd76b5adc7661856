"""`unimm bench rollouts`: both peers draw the same groups with the same weights, and the ratio is of pairs."""

import json
from pathlib import Path

import pytest
from trials_in_forks import forked_trials  # noqa: F401  a fixture
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.bench.rollouts import summary


@pytest.mark.usefixtures("forked_trials")
def test_both_draw_the_same_groups(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["bench", "rollouts", "--model", tiny_folder, "--device", "cpu", "--prompts", 2, "--group-size", 2, "--repeats", 2]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--out", tmp_path / "rollouts.json"]])
    assert result.exit_code == 0 and "times as many rollouts a second (median of 2 pairs" in result.output, result.output
    told = json.loads((tmp_path / "rollouts.json").read_text())
    assert told["groups"] == [2, 2] and len(told["ratios"]) == told["repeats"] == 2 and told["ratio"] > 0
    for one in told["medians"].values():
        assert one["images_a_second"] > 0 and one["decode_seconds"] > 0
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--guidance-scale", 1]])
    assert result.exit_code == 2 and "transformers draws with guidance alone" in result.stderr


def test_the_ratio_is_that_of_the_median_pair() -> None:
    def pair(ours: float, theirs: float) -> dict[str, dict[str, float]]:
        rest = {"seconds": 1.0, "decode_seconds": 1.0, "peak_gib": 1.0}
        own, other = {"images_a_second": ours, "cpu_seconds": 2.0}, {"images_a_second": theirs, "cpu_seconds": 5.0}
        return {"unimm": {**own, **rest}, "transformers": {**other, **rest}}

    told = summary([pair(8, 2), pair(4, 2), pair(30, 10)])
    assert told["ratios"] == [4, 2, 3] and told["ratio"] == 3 and told["cpu_ratio"] == 2.5
    assert told["medians"]["unimm"]["images_a_second"] == 8 and told["medians"]["transformers"]["images_a_second"] == 2
