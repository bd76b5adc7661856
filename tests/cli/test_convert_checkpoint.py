"""`unimm convert` of a training's checkpoint: the model that its run wrote, to the bit, whoever wrote the checkpoint."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unimm.checkpoints.folder import load_model
from unimm.checkpoints.tensor_shards import Part
from unimm.cli.app import app
from unimm.cli.checkpoint_model import _reserve
from unimm.training.checkpoint import Checkpoint, commit, file_of, load_checkpoint, write_own

WORDS = [
    *("data=text", "data.paths=text.txt", "device=cpu", "trainer.num_positions=64", "trainer.num_rows=1", "out=run"),
    *("trainer.num_workers=0", "trainer.sample_every=0", "trainer.budget.max_steps=2", "trainer.optimizer.lr=0.02"),
]
RUNS = {
    "averages": ["stage=finetune", "trainer.ema_decay=0.9"],
    "fresh projector": ["stage=align", "projector=pixel_shuffle", "fresh_parts=[projector]"],
    "adapters": ["stage=adapters", "lora=default", "lora.rank=2", "lora.targets=[trunk]"],
}


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).model.named_parameters())


def cut_in_two(checkpoints: Path, kept: Checkpoint) -> Path:
    """The same checkpoint, as two processes with shards would have written it."""
    parts: list[dict[str, Part]] = [{}, {}]
    for number, (name, tensor) in enumerate(kept.tensors.items()):
        if tensor.dim() and len(tensor) > 1:
            rows = len(tensor) // 2 + 1
            for process, begin in enumerate((0, rows)):
                half = tensor[begin : begin + rows].clone()
                parts[process][name] = Part(half, (begin, *(0,) * (tensor.dim() - 1)), tuple(tensor.shape))
        else:
            parts[number % 2][name] = Part.whole(tensor.clone())
    (temporary := checkpoints / ".cut.tmp").mkdir()
    digests = {file_of(number, 2): write_own(temporary / file_of(number, 2), own) for number, own in enumerate(parts)}
    final = checkpoints / f"step-{kept.step:08d}"
    commit(temporary, final, {"step": kept.step, **kept.state}, digests)
    assert len(list(final.iterdir())) == 4
    return final


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_becomes_the_model_that_its_run_wrote(
    run: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one process wrote it, in two parts, and in another dtype; averages, and merged adapters."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Some text.\n\nMore text.\n")
    call("train", *WORDS, *RUNS[run], f"init_from={tiny_folder}", f"image_tokenizer={tiny_folder}")
    written = weights(Path("run/model"))
    began = weights(tiny_folder)
    assert any(name not in began or not torch.equal(tensor, began[name]) for name, tensor in written.items())
    kept = load_checkpoint(Path("run/checkpoints"))
    assert kept is not None
    shutil.copytree("run", "moved")
    cut = cut_in_two(Path("moved/checkpoints"), kept)
    for source, dtype in (("run", None), (cut, None), ("moved", "bfloat16")):
        call("convert", source, "out", *(["--dtype", dtype] if dtype else []))
        for name, tensor in weights(Path("out")).items():
            assert torch.equal(tensor, written[name].to(torch.bfloat16 if dtype else torch.float32)), name
    assert not list(tmp_path.glob(".convert-*"))
    (cut / "manifest.json").unlink()
    for words, told in (
        ((cut, "out"), "There is no whole checkpoint in"),
        (("run", "out", "--adapter", "x"), "A checkpoint has all of its model: leave --adapter"),
    ):
        refused = CliRunner().invoke(app, ["convert", *map(str, words)])
        assert refused.exit_code == 2 and told in refused.stderr


def test_a_full_disk_is_told_before_a_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _reserve(tmp_path / "0", 3_000)
    assert (tmp_path / "0").stat().st_size == 3_000
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ValueError, match=r"no room for the weights .No space left on device.: make some"):
        _reserve(tmp_path / "1", 3_000)
