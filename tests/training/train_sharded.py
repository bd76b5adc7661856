"""Runs of the toy mixture for `test_sharding` to launch on one process or two: train_sharded.py FOLDER.

Every case of CASES in a folder of its own, one after the other in the same processes. whole.safetensors is what it ends with,
looks.json what the model said and drew on the way, best/ the model with the lowest loss on what is held out.
"""

import json
import os
import shutil
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from conftest import tiny_image_tokenizer
from safetensors.torch import save_file
from toys import EVERYTHING, Squares, make_config, make_mixture, make_model, make_template

from unimm.checkpoints.adapter_folder import save_adapter
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.cli.compose import leave_group
from unimm.cli.train import save_merged
from unimm.eval.validation import Validation, ValidationConfig
from unimm.inference.engine import Engine
from unimm.models.lora import LoraConfig, adapted_layers, attach
from unimm.models.unified import UnifiedModel
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig
from unimm.training.sharding import Sharding
from unimm.training.trainable_parts import Stage
from unimm.training.trainer import Trainer

STEPS = 4
TASK, NUM_ITEMS = "shapes_answers", 4
ADAPTERS = Stage("adapters", {})
SEEING = replace(EVERYTHING, lr_scales={part: 1.0 for part in EVERYTHING.lr_scales if part != "vision"})


@dataclass(frozen=True)
class Case:
    """num_rows: of a step; two of two processes are one each, one with nothing but drawings and one without any.
    stops_at: it goes on from there by a checkpoint. before: how it is sharded until then. watch: "all": it is sampled and
    validated; "losses": there are losses on what is held out; "nothing". lora: adapters learn.
    save_every: also to see what a checkpoint between two steps would hide.
    """

    sharding: Sharding
    num_micro_batches: int = 1
    num_rows: int = 2
    stage: Stage = EVERYTHING
    muon: bool = False
    ema_decay: float | None = None
    num_steps: int = STEPS
    stops_at: int | None = None
    before: Sharding | None = None
    watch: str = "losses"
    save_every: int = 1
    lora: bool = False


CASES = {
    "ddp": Case(Sharding()),
    "ddp, 2 passes": Case(Sharding(), 2, 4, ema_decay=0.9, watch="all"),
    "fsdp": Case(Sharding("fsdp")),
    "fsdp, 2 passes": Case(Sharding("fsdp"), 2, 4, ema_decay=0.9, save_every=0, watch="all"),
    "fsdp, unwatched": Case(Sharding("fsdp"), 2, 4, ema_decay=0.9, save_every=0, watch="nothing"),
    "fsdp, losses": Case(Sharding("fsdp"), 2, 4, ema_decay=0.9, save_every=0),
    "hsdp, a copy each": Case(Sharding("hsdp", 1), watch="all"),
    "hsdp, one copy": Case(Sharding("hsdp", 2), ema_decay=0.9, save_every=0, watch="all"),
    "hsdp, unwatched": Case(Sharding("hsdp", 2), ema_decay=0.9, save_every=0, watch="nothing"),
    "fsdp, frozen tower": Case(Sharding("fsdp"), stage=SEEING, ema_decay=0.9, watch="all"),
    "fsdp, muon": Case(Sharding("fsdp"), muon=True, num_steps=1),
    "fsdp, uneven": Case(Sharding("fsdp"), num_rows=9, ema_decay=0.9, stops_at=2),
    "ddp, then hsdp": Case(Sharding("hsdp", 1), ema_decay=0.9, stops_at=2, before=Sharding()),
    "hsdp, then fsdp": Case(Sharding("fsdp"), ema_decay=0.9, stops_at=2, before=Sharding("hsdp", 2)),
    "ddp, split rows": Case(Sharding("ddp", None, 2), 2, 4, ema_decay=0.9, save_every=0, watch="all"),
    "split rows, then hsdp": Case(Sharding("hsdp", 1), ema_decay=0.9, stops_at=2, before=Sharding("fsdp", None, 2)),
    "ddp, lora": Case(Sharding(), stage=ADAPTERS, lora=True, ema_decay=0.9, stops_at=2, watch="all"),
    "fsdp, lora": Case(Sharding("fsdp"), stage=ADAPTERS, lora=True, ema_decay=0.9, stops_at=2, watch="all"),
}


def form(case: Case) -> UnifiedModel:
    """A fresh model as the case trains it."""
    torch.manual_seed(0)
    model = make_model()
    if case.lora:
        attach(model, LoraConfig(rank=2, alpha=4.0))
    return model


def engine_of(model: UnifiedModel) -> Engine:
    return Engine(ModelBundle(model, {DEFAULT: tiny_image_tokenizer()}, make_template().tokenizer))


def look_at(model: UnifiedModel) -> dict[str, Any]:
    """What a model says of a picture, and draws."""
    engine = engine_of(model)
    codes = engine.generate_codes(["red square", "blue square"], num_images=4)
    return {"caption": engine.caption(Squares()[0].image, max_new_tokens=8), "codes": codes.tolist()}


class Watcher:
    """Samples and validates, and remembers which models it was given, without holding them."""

    def __init__(self, folder: Path) -> None:
        self.looks: dict[int, Any] = {}
        self.given: list[weakref.ref[UnifiedModel]] = []
        config = ValidationConfig(tasks=[TASK], num_items=NUM_ITEMS, monitor="loss")
        self._validation = Validation(config, folder / "best", save_merged, lambda: False)

    def sample(self, model: UnifiedModel, step: int, logbook: object) -> None:
        self.given.append(weakref.ref(model))
        self.looks[step] = look_at(model)

    def validate(self, model: UnifiedModel, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        self.given.append(weakref.ref(model))
        return self._validation(engine_of(model), step, losses)


def run(folder: Path, case: Case, steps: int, num_processes: int = 1) -> None:
    """Train, or train on; then write the averaged model down in one piece, and its adapter."""
    config = make_config(
        steps,
        stage=case.stage,
        optimizer=OptimizerConfig(muon_lr=0.02 if case.muon else None),
        num_rows=case.num_rows,
        num_micro_batches=case.num_micro_batches,
        sharding=case.sharding,
        ema_decay=case.ema_decay,
        save_every=case.save_every,
        sample_every=2 * (case.watch == "all"),
        validate_every=2 * (case.watch != "nothing"),
    )
    if num_processes == 1:  # rows are whole
        config = replace(config, sharding=replace(config.sharding, context_parallel_degree=1))
    watcher = Watcher(folder)
    watching = (watcher.sample, watcher.validate) if case.watch == "all" else (None, None)
    words = (*watching, make_mixture(drop=0.0, seed=1))
    trainer = Trainer(Likelihood(form(case)), make_mixture(), config, folder, "cpu", *words)
    trainer.fit()
    with trainer.averaged():
        done = trainer.run_on_rank0(lambda model: write(model, folder), torch.device("cpu"))
    assert done is (True if trainer.is_main else None)
    if trainer.is_main:
        assert not trainer.is_sharded or not any(given() for given in watcher.given), "a whole model was kept"
        (folder / "looks.json").write_text(json.dumps(watcher.looks))
    else:
        assert not watcher.given


def write(model: UnifiedModel, folder: Path) -> bool:
    """The model in one piece, as tensors, which are no parts of others; its adapter in peft's format."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "whole.safetensors")
    if adapted_layers(model):
        save_adapter(folder / "adapter", model, tiny_image_tokenizer(), "base")
    return True


def run_all(folder: Path, num_processes: int = 1) -> None:
    """Every case, in a folder of its own. One process holds a whole model, however several would share it: cases that are the
    same but for that are run once."""
    done: list[tuple[str, Case]] = []
    for name, case in CASES.items():
        whole = replace(case, sharding=Sharding(), before=None)
        same = next((other for other, one in done if one == whole), None) if num_processes == 1 else None
        if same is not None:
            shutil.copytree(folder / same, folder / name)
            continue
        done.append((name, whole))
        if case.stops_at is not None:
            run(folder / name, replace(case, sharding=case.before or case.sharding), case.stops_at, num_processes)
        run(folder / name, case, case.num_steps, num_processes)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]))
    leave_group()
