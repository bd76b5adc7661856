"""The best and the worst rollouts of a step, with their rewards: in TensorBoard, among the samples, and in the report."""

from dataclasses import replace
from pathlib import Path

import pytest
from rollout_toys import SETTINGS, make_prompts, make_rollout_trainer

from unimm.eval.report.page import read_samples, write_report


def test_best_and_worst_are_in_tensorboard_and_in_the_report(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = replace(SETTINGS, num_prompts=4, group_size=2, judges=["rollout_toys:constant"], judged=1)
    make_rollout_trainer(tmp_path, 2, settings, make_prompts(asks=True), sample_every=1).fit()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    found = accumulators.EventAccumulator(str(events))
    found.Reload()
    assert "best_and_worst" in found.Tags()["images"] and "reward/total" in found.Tags()["scalars"]
    assert [one.step for one in found.Images("best_and_worst")] == [1, 2]
    assert any(name.startswith("best_and_worst_answers") for name in found.Tags()["tensors"])
    samples = {one.name: one for one in read_samples(tmp_path / "samples")}
    assert samples["best_and_worst"].step == 2 and samples["best_and_worst"].picture
    first, *_ = samples["best_and_worst_answers"].text.splitlines()
    assert "(rollout_toys " in "\n".join(samples["best_and_worst_answers"].text.splitlines()), first
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "best and worst after 2 steps" in page and "best and worst answers after 2 steps" in page
    for group in ("reward", "judge", "rollout", "policy"):
        assert f"<h3>{group}" in page or group in page
