"""`projector=NAME`: one of ours in any model, a fresh one in a model to start from, and one that would not be used refused."""

from pathlib import Path

import pytest
import torch

from unimm.cli.compose import compose_config
from unimm.cli.learner import open_learner
from unimm.models.vision.projectors import ProjectorConfig

TALK = ["data=worlds/talk", "stage=llava_align", "codes=x"]


def start(folder: Path, *words: str) -> list[str]:
    return [f"init_from={folder}", *TALK, *words]


def test_a_model_to_start_from_gets_a_fresh_one_and_keeps_the_rest(tiny_folder: Path) -> None:
    words = ["projector=qformer", "fresh_parts=[projector]", "model.projector.num_queries=1", "model.projector.num_heads=4"]
    learner = open_learner(compose_config("train", start(tiny_folder, *words)))
    model, before = learner.bundle.model, open_learner(compose_config("train", start(tiny_folder))).bundle.model
    assert model.config.projector == ProjectorConfig("qformer", num_queries=1, num_heads=4)
    assert learner.fresh == {"projector"} and learner.mixture.template.num_positions == 1
    for name, parameter in before.named_parameters():
        assert name.startswith("pixels.projector") or torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_the_option_that_the_model_has_anyway_is_no_mistake_and_another_one_is(tiny_folder: Path) -> None:
    assert open_learner(compose_config("train", start(tiny_folder, "projector=mlp"))).fresh == set()
    with pytest.raises(ValueError, match=r"model.projector.kind=perceiver is not used, since .*\(kind=mlp\).*fresh_parts="):
        open_learner(compose_config("train", start(tiny_folder, "projector=perceiver")))


def test_an_option_counts_also_where_it_is_that_of_the_default_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Else a model with another projector would keep it: what is chosen is compared with the model, not with a file."""
    fresh = ["fresh_parts=[projector]", "projector=average_pool"]
    open_learner(compose_config("train", start(tiny_folder, *fresh))).bundle.save(tmp_path / "pooled")
    learner = open_learner(compose_config("train", start(tmp_path / "pooled", "fresh_parts=[projector]", "projector=mlp")))
    assert learner.bundle.model.config.projector == ProjectorConfig("mlp")
