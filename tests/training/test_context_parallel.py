"""Rows that processes share: losses and gradients are those of one process that has whole rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import run_ranks
from safetensors.torch import load_file
from toys import make_config, make_mixture, make_model
from train_split import CASES, PREFERENCES, write_all

from unimm.models.unified import UnifiedModel
from unimm.training.objectives.contrastive import Contrastive
from unimm.training.objectives.grpo import GRPO
from unimm.training.objectives.kto import KTO
from unimm.training.objectives.likelihood import Likelihood, Objective
from unimm.training.objectives.vision_pretraining import VisionPretraining
from unimm.training.sharding import Sharding, check_context, num_groups
from unimm.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("train_split.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    run_ranks(SCRIPT, folder / "two", 2)
    write_all(folder / "one")
    return folder


def check(whole: Path, split: Path, name: str, whole_name: str | None = None) -> None:
    """What each process found is what one found, within 1e-5 of the largest number of a gradient."""
    one = load_file(whole / f"{whole_name or name}.safetensors")
    others = [load_file(folder / f"{name}.safetensors") for folder in sorted(split.glob("[0-9]"))]
    assert len(one) > 30 and len(others) > 1
    assert any(one[key].any() for key in one if "tower" in key) == (name != "nothing but text")
    for found in others:
        assert found.keys() == one.keys()
        for key, tensor in one.items():
            atol = 1e-5 * max(float(tensor.nan_to_num().abs().max()), 1e-2)
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=atol, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", [*CASES, *PREFERENCES])
def test_losses_and_gradients_are_those_of_whole_rows(runs: Path, name: str) -> None:
    check(runs / "one" / "0", runs / "two", name)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [2, 4])
def test_four_processes_in_two_groups_and_as_one(runs: Path, tmp_path: Path, degree: int) -> None:
    """Two groups share out samples; one of four splits rows in four, and gives the same heads of keys to several."""
    run_ranks(SCRIPT, tmp_path, degree, num_processes=4)
    names = [path.stem for path in (tmp_path / "0").iterdir()]
    assert "hsdp" in names and "one head of keys" in names and "dpo" in names
    for name in names:
        check(runs / "one" / "0", tmp_path, name, "documents" if name == "hsdp" else None)


class Own(Likelihood):
    """An objective of another package, whose sums may be of whole rows."""

    def forward(self, batch):
        return super().forward(batch)


class OwnOfShares(Own):
    splits_rows = True


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (VisionPretraining, "VisionPretraining takes whole rows, since its vision tower looks at images"),
        (Contrastive, "Contrastive takes whole rows, since its towers look at pairs"),
        (KTO, "KTO takes whole rows, since it compares every sample with all others"),
        (GRPO, "GRPO takes whole rows, since every process makes rollouts"),
        (Own, "Own takes whole rows, since its class does not say"),
    ],
)
def test_objectives_of_whole_rows_are_refused(objective: type[Objective], why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}.*: leave trainer.sharding.context_parallel_degree at 1"):
        check_context(objective(make_model()), Sharding(context_parallel_degree=2), 64)  # pyright: ignore[reportCallIssue]
    check_context(objective(make_model()), Sharding(), 63)  # pyright: ignore[reportCallIssue]


def test_what_does_not_divide_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def check(degree: int, num_positions: int = 64, **trunk: object) -> None:
        config = make_model().config
        model = UnifiedModel(replace(config, trunk={**config.trunk, **trunk}))
        check_context(OwnOfShares(model), Sharding(context_parallel_degree=degree), num_positions)

    check(2)
    check(4, num_key_value_heads=2)
    with pytest.raises(ValueError, match=r"4 heads with 4 of keys do not divide by .*degree=8"):
        check(8)
    with pytest.raises(ValueError, match=r"12 heads with 4 of keys do not divide by .*degree=6"):
        check(6, 60, num_attention_heads=12, hidden_size=48)
    with pytest.raises(ValueError, match=r"Rows of 63 positions do not divide into 2 equal parts.*such as 64"):
        check(2, 63)
    with pytest.raises(ValueError, match=r"trunks of Llama's shape .*, and this one is gemma"):
        check(2, model_type="gemma")
    with pytest.raises(ValueError, match="splits rows over 4 processes, and the run has 2: start more"):
        num_groups(Sharding(context_parallel_degree=4), 2)
    with pytest.raises(ValueError, match="6 processes do not divide into groups of 4 that share rows"):
        num_groups(Sharding(context_parallel_degree=4), 6)
    with pytest.raises(ValueError, match="context_parallel_degree"):
        Sharding(context_parallel_degree=0)
    config = make_config(1, sharding=Sharding(context_parallel_degree=2))
    with pytest.raises(ValueError, match="splits rows over 2 processes, and the run has 1"):
        Trainer(Likelihood(make_model()), make_mixture(), config, tmp_path, "cpu")
