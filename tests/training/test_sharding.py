"""Sharded or not, apart or together: gradients are those of one process, and a run goes on with any number of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import run_ranks
from safetensors.torch import load_file
from toys import EVERYTHING, make_model
from train_sharded import CASES, NUM_ITEMS, STEPS, TASK, engine_of, form, look_at, run, run_all

from unimm.checkpoints.adapter_folder import TENSORS, merge_adapter
from unimm.checkpoints.folder import load_model
from unimm.eval.validation import make_task
from unimm.models.lora import adapted_layers, merge
from unimm.runtime.atomic_files import read_json
from unimm.training.checkpoint import load_checkpoint
from unimm.training.logbook import read_numbers
from unimm.training.sharding import Sharding

SCRIPT = Path(__file__).with_name("train_sharded.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, on one process and on two."""
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(SCRIPT, folder / "two")
    run_all(folder / "one")
    return folder


def losses(folder: Path) -> list[dict[str, float]]:
    """Of each step, those of the kinds that it has; and of every second, those on what is held out."""
    lines = read_numbers(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key.startswith(("loss/", "validation/"))} for line in lines]


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_losses_are_those_of_one_process(runs: Path, name: str) -> None:
    """The first moments of AdamW after some steps are sums of gradients, and so is Muon's momentum."""
    one, two = (load_checkpoint(runs / processes / name / "checkpoints") for processes in ("one", "two"))
    assert one is not None and two is not None and one.step == two.step == CASES[name].num_steps
    assert one.tensors.keys() == two.tensors.keys()
    moments = [key for key in one.tensors if key.endswith(("exp_avg", "momentum"))]
    assert len(moments) > 10
    for key in moments:
        largest = float(one.tensors[key].abs().max())
        torch.testing.assert_close(two.tensors[key], one.tensors[key], rtol=1e-3, atol=1e-4 * largest + 1e-9, msg=key)
    for ours, theirs in zip(losses(runs / "two" / name), losses(runs / "one" / name), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    held_out = [one.keys() for one in losses(runs / "two" / name) if "validation/loss" in one]
    logged = {"validation/loss", "validation/loss_text", "validation/loss_codes"}
    logged |= {f"validation/{TASK}", "validation/mean"} if CASES[name].watch == "all" else set()
    assert held_out == [logged] * (-(-CASES[name].num_steps // 2) * (CASES[name].watch != "nothing"))


@pytest.mark.parametrize("name", CASES)
def test_the_whole_model_is_the_checkpoint_s(runs: Path, name: str) -> None:
    """Its averages, of what has one."""
    for processes in ("one", "two"):
        checkpoint = load_checkpoint(runs / processes / name / "checkpoints")
        whole = load_file(runs / processes / name / "whole.safetensors")
        assert checkpoint is not None
        averages = {key for key in checkpoint.tensors if key.startswith("ema/")}
        assert bool(averages) == (CASES[name].ema_decay is not None)
        for key, tensor in whole.items():
            own = f"ema/model.{key}" if averages else f"weights/model.{key}"
            assert torch.equal(tensor, checkpoint.tensors[own if own in averages else f"weights/model.{key}"]), key
            averages.discard(own)
        assert not averages


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.watch == "all"])
def test_what_is_sampled_and_scored_is_the_whole_averaged_model(runs: Path, name: str) -> None:
    """As one process finds it by the same weights: captions, drawings, scores, and the best model."""
    case, folder = CASES[name], runs / "two" / name
    model = form(case).eval()
    model.load_state_dict(load_file(folder / "whole.safetensors"))
    looks = json.loads((folder / "looks.json").read_text())
    assert looks[str(case.num_steps)] == look_at(model)
    last = [line for line in read_numbers(folder / "metrics.jsonl") if "validation/loss" in line][-1]
    assert last[f"validation/{TASK}"] == make_task(TASK, NUM_ITEMS).run(engine_of(model), lambda example: None).score
    record = read_json(folder / "best" / "validation.json")
    assert record is not None and record["step"] == case.num_steps and record["score"] == last["validation/loss"]
    merge(model)
    best = load_model(folder / "best").model.state_dict()
    assert best and all(torch.equal(best[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["fsdp, 2 passes", "fsdp, losses", "hsdp, one copy"])
def test_watching_leaves_no_trace_in_shards(runs: Path, name: str) -> None:
    """To the bit; with averages, and no checkpoint that would bring the shards back between a look and the next step."""
    unwatched = "hsdp, unwatched" if "hsdp" in name else "fsdp, unwatched"
    one, other = (load_checkpoint(runs / "two" / case / "checkpoints") for case in (name, unwatched))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


@pytest.mark.parametrize("name", ["ddp, lora", "fsdp, lora"])
def test_an_adapter_is_that_of_one_process(runs: Path, name: str) -> None:
    """Also where it was half learned by then; and merged into its base it is the best model."""
    one, two = (load_file(runs / processes / name / "adapter" / TENSORS) for processes in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 2 * len(adapted_layers(form(CASES[name])))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-5, atol=1e-5)
    base = make_model()
    merge_adapter(base, runs / "two" / name / "adapter")
    best = load_model(runs / "two" / name / "best").model.state_dict()
    for key, tensor in base.state_dict().items():
        torch.testing.assert_close(best[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ema_decay is not None])
def test_averages_are_those_of_one_process(runs: Path, name: str) -> None:
    """As nearly as the weights: AdamW's first steps are as large where a gradient is next to none."""
    one, two = (load_checkpoint(runs / processes / name / "checkpoints") for processes in ("one", "two"))
    assert one is not None and two is not None and one.state["ema"] == two.state["ema"] == {"num_updates": STEPS}
    names = [key.removeprefix("ema/") for key in one.tensors if key.startswith("ema/")]
    frozen = [key for key in one.tensors if key.startswith("weights/model.pixels.tower.")]
    assert any("tower" in name for name in names) == (CASES[name].stage is EVERYTHING) and frozen
    for key in names:
        far, far_weights = ((two.tensors[f"{k}/{key}"] - one.tensors[f"{k}/{key}"]).abs().max() for k in ("ema", "weights"))
        assert float(far) <= max(2 * float(far_weights), 1e-6), key
    assert sum(not torch.equal(two.tensors[f"ema/{key}"], two.tensors[f"weights/{key}"]) for key in names) > 10


def test_a_muon_step_is_that_of_one_process(runs: Path) -> None:
    """Its products are in bfloat16: nearly, but where a gradient has hardly a direction."""
    one, two = (load_file(runs / processes / "fsdp, muon" / "whole.safetensors") for processes in ("one", "two"))
    far = {key: float((two[key] - one[key]).abs().max() / one[key].abs().max()) for key in one if one[key].dim()}
    assert sorted(far.values())[-3] < 1e-3 and max(far.values()) < 0.05


@pytest.mark.parametrize("name", ["fsdp", "fsdp, 2 passes"])
def test_one_process_goes_on_where_two_with_shards_stopped(runs: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(runs / "two" / name, tmp_path / "two")
    shutil.copytree(runs / "one" / name, tmp_path / "one")
    for processes in ("one", "two"):
        run(tmp_path / processes, CASES[name], STEPS + 3)
    assert sum("validation/loss" not in one for one in losses(tmp_path / "two")) == STEPS + 3
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    if CASES[name].ema_decay is not None:
        kept = load_checkpoint(tmp_path / "two" / "checkpoints")
        assert kept is not None and kept.state["ema"] == {"num_updates": STEPS + 3}


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown sharding 'zero3': use ddp, fsdp, hsdp"):
        Sharding("zero3")
    for way, size in (("hsdp", None), ("fsdp", 2)):
        with pytest.raises(ValueError, match="hsdp needs it, and only hsdp"):
            Sharding(way, size)
    with pytest.raises(ValueError, match="6 processes do not divide into copies of 4"):
        Sharding("hsdp", 4).mesh_shape(6)
    assert Sharding("hsdp", 4).mesh_shape(8) == (2, 4) and Sharding("fsdp").mesh_shape(8) == (8,)
