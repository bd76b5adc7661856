"""Training on a GPU is training on a CPU: the same losses and gradients by other kernels, and runs that learn and go on.

What a CPU can do it does here too, by its own ways; `pytest -m gpu` has the rest. All models are tiny. What takes the compiler
longest comes last: a GPU may be there for minutes only.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import tiny_image_tokenizer
from torch import distributed
from toy_tokenizers import SIZES
from toy_tokenizers import Squares as BrightSquares
from toy_tokenizers import make_config as make_tokenizer_config
from toy_trainings import ADAMW, MUON, assert_equal, halves, weights_of
from toys import make_config, make_mixture, make_model, make_steps, make_template, make_trainer

from unimm.batch import Batch, collate
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.cli.learner import Learner
from unimm.cli.train import sample as sample_records
from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.data.mixture import Mixture
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.lora import LoraConfig, attach, is_adapter
from unimm.models.ports.base import LossSums
from unimm.models.ports.vocabulary import linear_cross_entropy
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind
from unimm.training.activation_checkpointing import checkpoint_activations
from unimm.training.image_tokenizer.discriminator import AdversaryConfig
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.logbook import Logbook, read_numbers
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import Budget
from unimm.training.sharding import Sharding, shard, whole
from unimm.training.trainable_parts import Stage

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
ON_EVERY_DEVICE = pytest.mark.parametrize("device", ["cpu", GPU])
COMPILED_ON_EVERY_DEVICE = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow(seconds=15)), GPU])
COMPILED = pytest.param({"compile": True, "precision": "bf16"}, marks=pytest.mark.slow(seconds=15))
BACKENDS = {"cpu": "documents", "cuda": "flex_attention"}
"""How a run attends where its layers are compiled."""

WIDTHS = (256, 320, 64)
"""Of rows: whole blocks of FlexAttention, a broken one, and less than one."""

TRUNKS = {
    "llama, heads of 16": {"model_type": "llama"},
    "llama, heads of 32": {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 2},
    "llama, heads of 64": {"model_type": "llama", "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
    "qwen3, heads share keys": {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2},
    "qwen2, three heads of 16": {"model_type": "qwen2", "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
}
ON_EVERY_TRUNK = pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS.keys())
QWEN3 = TRUNKS["qwen3, heads share keys"]

Learned = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Losses by kind and gradients by parameter, on the CPU."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float32 is float32, also of convolutions; and a test's device, and what it has compiled, are nothing to the next."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(trunk: dict[str, Any]) -> UnifiedModel:
    config = make_model().config
    torch.manual_seed(1)
    return UnifiedModel(replace(config, trunk={**config.trunk, **trunk})).train()


def as_trained(model: UnifiedModel, device: str, recompute: str = "none") -> UnifiedModel:
    """A model as the trainer has it on that device; on a CPU it is not compiled, for that takes long."""
    checkpoint_activations(model.layers(), recompute)
    if device == "cuda":
        model.compile_layers()
    model.set_attention(BACKENDS[device])
    return model.to(device)


def make_batch(width: int) -> Batch:
    """Rows of several documents with images and codes, one of a single document, and one of nothing; all with padding."""
    mixture = make_mixture()
    sequences = [mixture.sequence(sample) for sample in mixture.samples(0, 40)]
    rows: list[list] = [[], sequences[:1], []]
    for sequence in sequences[1:]:
        if sum(each.length for each in rows[-1]) + sequence.length > width - 3:
            rows.append([])
        rows[-1].append(sequence)
    batch = collate([rows[0], *rows[1:5]], num_positions=width)
    assert batch.num_images and all(batch.num_targets(kind) for kind in (Kind.TEXT, Kind.CODES))
    return batch


def learn(model: Callable[[Batch], dict[Any, LossSums]], batch: Batch, parameters: Any, is_bf16: bool = False) -> Learned:
    """Losses and gradients of a batch, with or without autocast."""
    parameters = dict(parameters)
    device = next(iter(parameters.values())).device
    for parameter in parameters.values():
        parameter.grad = None
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        tallies = model(batch.to(device))
    torch.stack([tally.loss / tally.count for tally in tallies.values()]).sum().backward()
    losses = {getattr(kind, "name", kind).lower(): (tally.loss / tally.count).detach().cpu() for kind, tally in tallies.items()}
    return losses, {name: whole(p.grad).detach().cpu().clone() for name, p in parameters.items() if p.grad is not None}


def assert_same(found: Learned, expected: Learned) -> None:
    assert found[0] == {name: pytest.approx(float(loss), rel=1e-3) for name, loss in expected[0].items()}
    assert found[1].keys() == expected[1].keys()
    total = joined(expected[1]).norm()
    far = {name: float((found[1][name] - one).norm() / (one.norm() + 1e-4 * total)) for name, one in expected[1].items()}
    assert {name: distance for name, distance in far.items() if not distance < 1e-3} == {}


def joined(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


@ON_EVERY_DEVICE
@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num", [1000, 0])
def test_the_chunked_loss_is_the_plain_one(num: int, is_bf16: bool, device: str) -> None:
    torch.manual_seed(0)
    learned = [torch.randn(shape, device=device, requires_grad=True) for shape in ((num, 64), (500, 64), (500,))]
    targets_n, weights_n = torch.randint(500, (num,), device=device), torch.rand(num, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
        loss, correct = linear_cross_entropy(*learned, targets_n, weights_n, chunk_logits=500 * 300)  # pyright: ignore
        logits_nV = F.linear(*learned).float()
    losses_n = F.cross_entropy(logits_nV, targets_n, reduction="none")
    hits = ((logits_nV.argmax(-1) == targets_n) * weights_n).sum()
    grads, expected = (torch.autograd.grad(one, learned) for one in (loss, (losses_n * weights_n).sum()))
    tolerance = 0.02 if is_bf16 else 1e-4
    assert loss.item() == pytest.approx((losses_n * weights_n).sum().item(), rel=tolerance)
    assert float(correct) == pytest.approx(float(hits), rel=tolerance, abs=3 if is_bf16 else 1e-3)
    for grad, other in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32 and (grad - other).norm() <= tolerance * other.norm()


def even_mixture() -> Mixture:
    """The toy sources in equal shares, so that some rows have no image and some no codes."""
    return Mixture([replace(source, weight=1.0) for source in make_mixture().sources], make_template())


@COMPILED_ON_EVERY_DEVICE
def test_a_compiled_run_in_bf16_learns_reports_and_goes_on(tmp_path: Path, device: str) -> None:
    config = make_config(
        12,
        compile=True,
        precision="bf16",
        num_workers=2,
        ema_decay=0.9,
        optimizer=MUON,
        num_micro_batches=9,
        peak_tflops=1.0,
    )
    steps = make_steps(even_mixture(), num_micro_batches=9)
    parts = [part for number in range(3) for part in steps[number].batches]
    assert any(not part.num_images for part in parts) and any(not part.num_targets(Kind.CODES) for part in parts)
    make_trainer(tmp_path, config, even_mixture(), device=device).fit()
    resumed = make_trainer(tmp_path, replace(config, budget=Budget(max_steps=16)), even_mixture(), device=device)
    assert resumed.step == 12 and resumed.ema is not None and resumed.ema.num_updates == 12
    resumed.fit()
    lines = read_numbers(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert sum(line["loss/text"] for line in lines[-4:]) < 0.8 * sum(line["loss/text"] for line in lines[:4])
    assert all(line["speed/mfu"] > 0 and 0 <= line["speed/data_wait"] <= 1 for line in lines)
    assert {p.device.type for p in resumed.model.parameters()} == {device}


@ON_EVERY_DEVICE
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_k_steps_and_resume_are_2k_steps(tmp_path: Path, num_micro_batches: int, device: str) -> None:
    """To the bit on a CPU; a GPU adds up in any order, and a large eps lets nothing come of noise where gradients are zero."""
    changes = {"optimizer": replace(ADAMW, eps=1e-5), "ema_decay": 0.9, "num_micro_batches": num_micro_batches}
    whole_run = make_trainer(tmp_path / "whole", make_config(8, **changes), device=device)
    whole_run.fit()
    make_trainer(tmp_path / "parts", make_config(4, **changes), device=device).fit()
    resumed = make_trainer(tmp_path / "parts", make_config(8, **changes), device=device)
    assert resumed.step == 4
    resumed.fit()
    found, expected = weights_of(resumed), weights_of(whole_run)
    if device == "cpu":
        assert_equal(found, expected)
    assert (joined(found) - joined(expected)).norm() <= 1e-4 * joined(expected).norm()


class Watched(Likelihood):
    """Likelihood that notes of every forward pass whether it teaches, and how the trunk attends."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__(model)
        self.seen: list[tuple[bool, str]] = []

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        self.seen.append((self.model.training, self.model.trunk.config._attn_implementation))
        return super().forward(batch)


@COMPILED_ON_EVERY_DEVICE
def test_looking_at_a_compiled_run_does_not_change_how_it_goes_on(tmp_path: Path, device: str) -> None:
    """Captions and drawings by the engine, and losses on what is held out, between steps."""
    learned, held_out = halves()
    config = make_config(5, compile=True, precision="bf16", num_rows=4, sample_every=2, validate_every=2, ema_decay=0.9)
    told: list[dict[str, float]] = []

    def sample(model: UnifiedModel, step: int, logbook: Logbook) -> None:
        bundle = ModelBundle(model, {DEFAULT: tiny_image_tokenizer()}, learned.template.tokenizer)
        sample_records(Engine(Learner(bundle, learned, None, set()).bundle_of(model)), learned, step, logbook)

    def validate(model: UnifiedModel, step: int, losses: dict[str, float]) -> dict[str, float]:
        told.append(losses)
        return {"seen": 1.0}

    looks = {"sample": sample, "validate": validate, "held_out": held_out}
    trainer = make_trainer(tmp_path / "looks", config, learned, Watched, device=device, **looks)
    trainer.fit()
    assert isinstance(trainer.objective, Watched)
    expected = BACKENDS[device] if trainer.is_compiled or device == "cpu" else "sdpa"
    assert set(trainer.objective.seen) == {(True, expected), (False, "sdpa")}
    assert len(told) == 3 and all(0 < losses["loss"] < 100 for losses in told)
    assert len(list((tmp_path / "looks" / "samples").glob("*drawings.png"))) == 3
    quiet = make_trainer(tmp_path / "quiet", replace(config, sample_every=0, validate_every=0), learned, device=device)
    quiet.fit()
    logged = [
        [line["loss/text"] for line in read_numbers(tmp_path / name / "metrics.jsonl") if "loss/text" in line]
        for name in ("looks", "quiet")
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-2)


def with_adapters(model: UnifiedModel) -> Likelihood:
    attach(model, LoraConfig(rank=2, alpha=4.0, targets=["trunk", "vision"]))
    return Likelihood(model)


@ON_EVERY_DEVICE
@pytest.mark.parametrize("changes", [{}, COMPILED], ids=["plain", "compiled bf16"])
def test_adapters_move_alone(tmp_path: Path, changes: dict[str, Any], device: str) -> None:
    config = make_config(6, stage=Stage("adapters", {}), optimizer=replace(ADAMW, lr=1e-2), **changes)
    trainer = make_trainer(tmp_path, config, objective=with_adapters, device=device)
    before = {name: tensor.cpu() for name, tensor in weights_of(trainer).items()}
    trainer.fit()
    moved = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor.cpu(), before[name])}
    assert moved == {name for name in before if is_adapter(name)}
    lines = read_numbers(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss/text"] < lines[0]["loss/text"]


@ON_EVERY_DEVICE
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, COMPILED], ids=["fp32", "bf16", "compiled"])
def test_an_image_tokenizer_learns_against_an_adversary_and_goes_on(
    tmp_path: Path, changes: dict[str, Any], device: str
) -> None:
    adversary = AdversaryConfig(start_step=4, channels=8, num_layers=1)

    def trainer(max_steps: int) -> TokenizerTrainer:
        torch.manual_seed(0)
        batches = ImageBatches([ImageSource(BrightSquares())], 8, SIZES.image_size)
        config = make_tokenizer_config(max_steps, adversary=adversary, num_workers=1, **changes)
        shown = {"validation_NCHW": batches[0], "score": lambda images: {"seen": len(images)}}
        return TokenizerTrainer(ImageTokenizer(SIZES), batches, config, tmp_path, device=device, **shown)

    trainer(16).fit()
    resumed = trainer(24)
    assert resumed.step == 16
    average = resumed.fit()
    lines = read_numbers(tmp_path / "metrics.jsonl")
    losses = [line["loss/l1"] for line in lines if "loss/l1" in line]
    assert len(losses) == 24 and losses[-1] < 0.8 * losses[0]
    assert ["loss/discriminator" in line for line in lines if "loss/l1" in line] == [False] * 4 + [True] * 20
    assert lines[-1]["validation/seen"] == 8 and lines[-1]["validation/psnr"] > 0
    assert {p.device.type for p in average.parameters()} == {device}


@ON_EVERY_DEVICE
def test_one_process_needs_no_shards(tmp_path: Path, device: str) -> None:
    trainer = make_trainer(tmp_path, make_config(2, sharding=Sharding("fsdp")), device=device)
    trainer.fit()
    assert trainer.step == 2 and not trainer.is_sharded


@pytest.fixture
def group(device: str) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield
    distributed.destroy_process_group()


@ON_EVERY_DEVICE
@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.usefixtures("group")
def test_a_model_in_shards_learns_the_same(is_bf16: bool, device: str) -> None:
    """Of one process, which holds all of them; compiled first, as the trainer does it."""
    reference = Likelihood(make(QWEN3))
    sharded = Likelihood(as_trained(make(QWEN3), device))
    shard(sharded, Sharding("fsdp"), 1, torch.device(device), is_bf16)
    batch = make_batch(WIDTHS[0])
    expected = learn(reference, batch, reference.named_parameters())
    found = learn(sharded, batch, sharded.named_parameters(), is_bf16)
    if not is_bf16:
        assert_same(found, expected)
    assert found[0] == {name: pytest.approx(float(loss), rel=0.05) for name, loss in expected[0].items()}
    assert F.cosine_similarity(joined(found[1]), joined(expected[1]), dim=0) > 0.9


@ON_EVERY_DEVICE
@ON_EVERY_TRUNK
def test_losses_and_gradients_are_those_of_whole_rows_on_a_cpu(trunk: dict[str, Any], device: str) -> None:
    """Rows of one width after another: layers are compiled again."""
    reference, model = make(trunk), as_trained(make(trunk), device)
    for width in WIDTHS:
        batch = make_batch(width)
        expected = learn(reference, batch, reference.named_parameters())
        assert_same(learn(model, batch, model.named_parameters()), expected)


@ON_EVERY_DEVICE
@pytest.mark.parametrize("recompute", ["none", "selective"])
@ON_EVERY_TRUNK
def test_bf16_is_near_float32(trunk: dict[str, Any], recompute: str, device: str) -> None:
    trunk = {**trunk, "initializer_range": 0.05}  # the large weights of other tests enlarge what is rounded, too
    reference, model = make(trunk), as_trained(make(trunk), device, recompute)
    batch = make_batch(WIDTHS[0])
    losses, gradients = learn(reference, batch, reference.named_parameters())
    near_losses, near = learn(model, batch, model.named_parameters(), is_bf16=True)
    assert near_losses == {name: pytest.approx(float(loss), rel=0.02) for name, loss in losses.items()}
    assert near.keys() == gradients.keys() and {gradient.dtype for gradient in near.values()} == {torch.float32}
    assert F.cosine_similarity(joined(near), joined(gradients), dim=0) > 0.99


@ON_EVERY_DEVICE
@pytest.mark.parametrize("way", ["selective", "full"])
@pytest.mark.parametrize("trunk", [TRUNKS["llama, heads of 16"], QWEN3], ids=["llama", "qwen3"])
def test_what_is_computed_again_is_the_same(trunk: dict[str, Any], way: str, device: str) -> None:
    reference, model = make(trunk), as_trained(make(trunk), device, way)
    for width in WIDTHS[:2]:
        batch = make_batch(width)
        expected = learn(reference, batch, reference.named_parameters())
        assert_same(learn(model, batch, model.named_parameters()), expected)
