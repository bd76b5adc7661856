"""What a step costs on a CPU is said before the first one, where that is long."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from toy_tokenizers import make_config as make_tokenizer_config
from toy_tokenizers import make_trainer as make_tokenizer_trainer

from unimm.cli.compose import compose_config
from unimm.runtime.devices import Speed
from unimm.training import flops
from unimm.training.flops import FlopCount
from unimm.training.image_tokenizer.discriminator import AdversaryConfig

CPU = torch.device("cpu")


class Count(FlopCount):
    """Of a model of 1.6 billion parameters that all learn."""

    def __init__(self) -> None:
        pass

    def about(self, num_positions: int) -> int:
        return num_positions * 6 * 1_600_000_000


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """A CPU of 100 GFLOP/s, and the dtypes in which it was measured."""
    asked: list[torch.dtype] = []

    def measured(dtype: torch.dtype) -> Speed:
        asked.append(dtype)
        return Speed(100.0, 100.0, 1.0)

    monkeypatch.setattr(flops, "measure_speed", measured)
    return asked


def test_a_step_for_a_gpu_is_said_with_the_words_for_a_cpu() -> None:
    """65,536 positions of 9.6 GFLOP at 50 GFLOP/s are 3.5 hours; 2,048 of them 6.6 minutes."""
    (line,) = flops.warn_of_cost(Count(), 16 * 4096, "no", False, CPU)
    assert line == (
        "WARNING: a step of 65,536 positions takes this CPU about 210 minutes (predicted from 100 GFLOP/s in "
        "float32, measured just now); steps for a CPU: trainer=cpu trainer.num_rows=2 trainer.num_positions=1024 "
        "trainer.optimizer.muon_lr=null "
        "(about 7 minutes each)."
    )


def test_the_words_make_such_steps() -> None:
    """Over an experiment that has others, whose small rate stays without Muon's large one beside it."""
    words = ["trainer=cpu", "trainer.num_rows=2", "trainer.num_positions=1024", "trainer.optimizer.muon_lr=null"]
    trainer = compose_config("train", ["+experiment=draw_finetune", *words]).trainer
    assert (trainer.num_rows, trainer.num_positions, trainer.compile, trainer.num_workers) == (2, 1024, False, 0)
    assert (trainer.optimizer.lr, trainer.optimizer.muon_lr) == (2e-5, None)


def test_a_slow_step_of_few_positions_and_a_quick_one_of_many(speed: list[torch.dtype]) -> None:
    (line,) = flops.warn_of_cost(Count(), 1024, "bf16", True, CPU)
    assert "about 3 minutes (predicted from 100 GFLOP/s in bfloat16, measured just now)" in line
    assert line.endswith("a GPU or a smaller model is quicker.")
    assert speed == [torch.bfloat16]
    (line,) = flops.warn_of_cost(FlopCount(tiny_model(400)), 16 * 4096, "no", True, CPU)
    assert "65,536 positions" in line and "num_positions=1024 (about 0 s each)" in line


def test_nothing_is_said_or_measured_where_steps_are_quick(speed: list[torch.dtype]) -> None:
    small = FlopCount(tiny_model(400))
    assert not [*flops.warn_of_cost(small, 6 * 1024, "no", True, CPU)]
    assert not [*flops.warn_of_cost(Count(), 16 * 4096, "no", True, torch.device("cuda"))]
    assert not [*flops.warn_of_cost(None, 16 * 4096, "no", True, CPU)]
    assert not speed


def test_the_count_of_a_step_is_near_that_of_its_products() -> None:
    """Six operations a position and parameter of trunk and the larger head, forward and backward."""
    model = tiny_model(400)
    parts = model.parts()
    trunk = sum(p.numel() for p in parts["trunk"].parameters() if p.ndim == 2)
    heads = [sum(p.numel() for p in parts[name].parameters() if p.ndim == 2) for name in ("text_head", "code_head")]
    assert FlopCount(model).about(10) == 10 * 6 * (trunk + max(heads))


def test_an_image_tokenizer_counts_its_convolutions(tmp_path: Path) -> None:
    """As many operations as in a forward pass of a whole image, forward and twice backward."""
    found, _ = flops.convolution_flops(torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 4, 4))
    assert found == 2 * (3 * 8 * 9) * (2 * 4 * 4)
    trainer = make_tokenizer_trainer(tmp_path, make_tokenizer_config(1))
    tokenizer = trainer.ema
    encoding, latents_NCHW = flops.convolution_flops(tokenizer.encoder, torch.zeros(1, 3, 16, 16))
    decoding, drawn_NCHW = flops.convolution_flops(tokenizer.decoder, latents_NCHW)
    assert drawn_NCHW.shape == (1, 3, 16, 16) and trainer.flops_per_image() == 3 * (encoding + decoding)
    adversary = AdversaryConfig(start_step=0, channels=8, num_layers=1)
    against = make_tokenizer_trainer(tmp_path / "gan", make_tokenizer_config(1, adversary=adversary))
    assert against.flops_per_image() > trainer.flops_per_image()


def test_slow_steps_of_an_image_tokenizer_are_said_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: list[torch.dtype]
) -> None:
    """128 images of Janus' tokenizer are 150 TFLOP: 50 minutes at 50 GFLOP/s. Quick ones are not even measured for."""
    (line,) = flops.warn_of_image_cost(150 * 10**12, 128, 256, "bf16", CPU)
    assert line == (
        "WARNING: a step of 128 images of 256 x 256 takes this CPU about 50 minutes (predicted from 100 GFLOP/s in bfloat16, "
        "measured just now); steps for a CPU: images.batch_size=3 (about 70 s a step) or tokenizer=tiny, for images of "
        "64 x 64; a GPU is quicker."
    )
    assert not [*flops.warn_of_image_cost(150 * 10**12, 128, 256, "bf16", torch.device("cuda"))]
    speed.clear()
    make_tokenizer_trainer(tmp_path / "quick", make_tokenizer_config(1)).fit()
    assert "WARNING" not in capsys.readouterr().out and not speed
    monkeypatch.setattr(flops, "SLOW_SECONDS", 0.0)
    make_tokenizer_trainer(tmp_path / "slow", make_tokenizer_config(1)).fit()
    out = capsys.readouterr().out
    assert 0 <= out.index("WARNING: a step of 4 images of 16 x 16") < out.index("training (image tokenizer)")
