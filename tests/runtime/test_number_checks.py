"""Numbers that make no sense end in one sentence that names the setting, wherever they are given."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from unimm.cli.compose import build, compose_config, seed_everything
from unimm.cli.errors import explain
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.packing import RowLayout
from unimm.data.worlds.shapes import ShapesWorld
from unimm.models.unified import UnifiedConfig
from unimm.precompute.sharded_pass import PassConfig
from unimm.runtime.number_checks import check_number, check_probability, check_whole
from unimm.training.image_tokenizer.discriminator import AdversaryConfig
from unimm.training.sharding import Sharding

ROOTS = {
    "train": ["image_tokenizer=x", "codes=x", "lora=default", "trainer=gpu"],
    "train_tokenizer": ["tokenizer_trainer=gan"],
}
NODES = {"train": ("trainer", "model", "validation", "lora"), "train_tokenizer": ("tokenizer", "tokenizer_trainer")}


def numbers(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """The keys of all numbers below a node."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}"


@pytest.mark.parametrize(("root", "name"), [(root, name) for root, names in NODES.items() for name in names])
@pytest.mark.parametrize("wrong", [-1, "soon", float("nan"), float("inf")])
def test_no_number_of_a_configuration_may_be_nonsense(root: str, name: str, wrong: object) -> None:
    """Each number of what is configured, set to one that it cannot be, is refused in a sentence that names it."""
    config = compose_config(root, ROOTS[root])
    keys = [key for key in numbers(config[name]) if ".lr_scales." not in key and "trunk." not in key]
    assert keys
    for key in keys:
        if wrong == float("inf") and key.endswith("eps"):
            continue
        changed = config.copy()
        OmegaConf.update(changed, f"{name}.{key}", wrong)
        with pytest.raises(Exception) as caught:
            build(changed[name])
        told = explain(caught.value)
        assert told is not None and "\n" not in told, (key, told)
        assert key.rsplit(".", 1)[-1] in told or "shape" in told, (key, told)


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_counts_are_at_least_one(wrong: float) -> None:
    config = compose_config("train", ROOTS["train"])
    for key in ("num_rows", "num_positions", "num_micro_batches", "budget.max_steps"):
        changed = config.copy()
        OmegaConf.update(changed, f"trainer.{key}", wrong)
        with pytest.raises(Exception, match=f"{key.rsplit('.', 1)[-1]} is a whole number of at least 1, not {wrong}"):
            build(changed.trainer)
    for make in (
        lambda: PassConfig(batch_size=wrong),  # pyright: ignore[reportArgumentType]
        lambda: RowLayout(wrong, 1),  # pyright: ignore[reportArgumentType]
        lambda: RowLayout(1, wrong),  # pyright: ignore[reportArgumentType]
        lambda: Sharding("hsdp", wrong),  # pyright: ignore[reportArgumentType]
        lambda: AdversaryConfig(channels=wrong),  # pyright: ignore[reportArgumentType]
        lambda: ImageBatches([ImageSource(ShapesWorld(num_records=2))], wrong, 64),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=f"is a whole number of at least 1, not {wrong}"):
            make()


def test_sizes_of_a_trunk_are_at_least_one() -> None:
    config = compose_config("train", ROOTS["train"])
    for name in ("num_attention_heads", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
        sizes: UnifiedConfig = build(config.model, trunk={**config.model.trunk, name: 0})
        with pytest.raises(ValueError, match=rf"trunk\.{name} is a whole number of at least 1, not 0"):
            sizes.trunk_config()


def test_more_than_a_machine_can_do_is_refused() -> None:
    config = compose_config("train", ROOTS["train"])
    for key, value in (("num_rows", 10**9), ("num_positions", 10**12), ("num_workers", 10**6)):
        changed = config.copy()
        changed.trainer[key] = value
        with pytest.raises(Exception, match=key):
            build(changed.trainer)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "soon"])
def test_a_seed_is_a_number_that_generators_take(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed (is|must be)"):
        seed_everything(seed)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = SimpleNamespace(count=np.int64(3), rate=np.float32(0.5), yes=True, text="3")
    check_whole(settings, 3, "count")
    check_number(settings, "rate", "count", above=0, below=4)
    check_probability(settings, "rate")
    for name in ("yes", "text"):
        with pytest.raises(ValueError, match=f"{name} is a whole number of at least 0, not"):
            check_whole(settings, 0, name)
        with pytest.raises(ValueError, match=f"{name} is a number at least 0, not"):
            check_number(settings, name)
    with pytest.raises(ValueError, match=r"rate is a number above 0 and below 0\.5, not"):
        check_number(settings, "rate", above=0, below=0.5)
