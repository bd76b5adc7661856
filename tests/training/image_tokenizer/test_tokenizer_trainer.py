"""The tokenizer's trainer: it learns, resumes to the bit, averages its weights, and lets an adversary in on time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_tokenizers import SIZES, Squares, make_config, make_trainer, read

from unimm.data.image_batches import ImageBatches, ImageSource
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.training.checkpoint import load_checkpoint
from unimm.training.image_tokenizer.discriminator import AdversaryConfig, PatchDiscriminator, adaptive_weight, generator_loss
from unimm.training.image_tokenizer.metrics import draw_grid, measure_usage
from unimm.training.image_tokenizer.reconstruction_loss import ReconstructionLoss, ReconstructionLossConfig, roughness
from unimm.training.image_tokenizer.trainer import TokenizerTrainer
from unimm.training.optimizers import orthogonalise


@pytest.mark.parametrize("muon_lr", [0.02, None])
def test_learns_and_reports(tmp_path, muon_lr):
    validation = np.stack([ImageBatches([ImageSource(Squares())], 8, 16)[0]])[0]
    config = make_config(60, muon_lr=muon_lr, report_every=10)
    trainer = make_trainer(tmp_path, config, 8, validation_NCHW=validation, score=lambda images: {"seen": len(images)})
    ema = trainer.fit()
    lines = read(tmp_path)
    losses = [line["loss/l1"] for line in lines if "loss/l1" in line]
    assert losses[-1] < 0.5 * losses[0]
    end = lines[-1]
    assert end["validation/psnr"] > 12 and 0 < end["validation/ssim"] <= 1 and end["validation/seen"] == 8
    assert 0 < end["validation/codes/usage"] <= 1 and 1 <= end["validation/codes/perplexity"] <= 32
    assert (tmp_path / "samples" / "00000060-reconstructions.png").is_file()
    assert not ema.training and ema is trainer.ema


@pytest.mark.parametrize("adversary", [None, AdversaryConfig(start_step=2, channels=8, num_layers=1)])
def test_resume_is_exact(tmp_path, adversary):
    """3 steps, then 3 more from the checkpoint = 6 steps, to the bit: weights, averages, codebook, adversary."""
    whole = make_trainer(tmp_path / "whole", make_config(6, adversary=adversary))
    whole.fit()
    make_trainer(tmp_path / "parts", make_config(3, adversary=adversary)).fit()
    resumed = make_trainer(tmp_path / "parts", make_config(6, adversary=adversary))
    assert resumed.step == 3
    resumed.fit()
    for part in ("model", "ema"):
        expected, got = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    if whole.adversary and resumed.adversary:
        for name, tensor in whole.adversary.tensors().items():
            assert torch.equal(resumed.adversary.tensors()[name], tensor), name
    expected, got = ([line["loss/l1"] for line in read(tmp_path / name)] for name in ("whole", "parts"))
    assert got == expected


LATENTS = replace(SIZES, quantizer=GaussianConfig(code_dim=2, kl_weight=1e-3))


def test_one_with_latents_learns_and_resumes_to_the_bit(tmp_path):
    validation = np.stack([ImageBatches([ImageSource(Squares())], 8, 16)[0]])[0]
    words = {"sizes": LATENTS, "validation_NCHW": validation}
    whole = make_trainer(tmp_path / "whole", make_config(30), **words)
    whole.fit()
    lines = read(tmp_path / "whole")
    losses = [line["loss/l1"] for line in lines if "loss/l1" in line]
    assert losses[-1] < 0.7 * losses[0] and lines[-1]["validation/psnr"] > 8
    assert not any("codes" in name for line in lines for name in line)
    make_trainer(tmp_path / "parts", make_config(4), **words).fit()
    resumed = make_trainer(tmp_path / "parts", make_config(30), **words)
    assert resumed.step == 4
    resumed.fit()
    expected = whole.ema.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.ema.state_dict().items())
    with pytest.raises(ValueError, match="smoothness is a price on codes"):
        make_trainer(tmp_path / "smooth", make_config(1, smoothness=0.1), sizes=LATENTS)


def test_roughness_is_the_distance_between_neighbours():
    flat = torch.tensor([3.0, 0.0]).expand(2, 9, 2)
    assert roughness(flat) == pytest.approx(0.02, abs=1e-4)  # two directions, the small number that keeps gradients finite
    halves = flat.clone().view(2, 3, 3, 2)
    halves[:, :, 2] = torch.tensor([0.0, 7.0])  # lengths do not count, and a step of 90 degrees is sqrt(2) wide
    rough = halves.reshape(2, 9, 2).requires_grad_()
    loss = roughness(rough)
    assert loss.item() == pytest.approx(0.5 * 2**0.5 + 0.015, abs=2e-3)
    loss.backward()
    assert rough.grad is not None and rough.grad.isfinite().all()


def test_smoothness_steadies_the_codes(tmp_path):
    rough, smooth = (make_trainer(tmp_path / str(weight), make_config(40, smoothness=weight)) for weight in (0.0, 0.1))
    rough.fit(), smooth.fit()
    assert "loss/roughness" in read(tmp_path / "0.1")[-1] and "loss/roughness" not in read(tmp_path / "0.0")[-1]
    pixels = torch.from_numpy(ImageBatches([ImageSource(Squares())], 16, SIZES.image_size)[0])
    assert roughness(smooth.ema.latents(pixels)) < 0.5 * roughness(rough.ema.latents(pixels))


def test_average_follows_behind(tmp_path):
    trainer = make_trainer(tmp_path, make_config(5))
    start = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    name = "decoder.mid.block_1.conv1.weight"
    now, average = trainer.model.get_parameter(name), trainer.ema.get_parameter(name)
    assert 0 < (average - now).norm() < (start[name] - now).norm()
    assert torch.equal(trainer.ema.quantize.codebook, trainer.model.quantize.codebook)
    assert not any(p.requires_grad for p in trainer.ema.parameters())


def test_adversary_starts_at_its_step(tmp_path):
    trainer = make_trainer(tmp_path, make_config(4, adversary=AdversaryConfig(start_step=2, channels=8, num_layers=1)))
    before = {name: p.clone() for name, p in trainer.adversary.discriminator.named_parameters()}
    trainer.fit()
    lines = read(tmp_path)
    assert ["loss/discriminator" in line for line in lines] == [False, False, True, True]
    assert all(line["loss/adaptive_weight"] > 0 for line in lines[2:])
    moved = [not torch.equal(p, before[name]) for name, p in trainer.adversary.discriminator.named_parameters()]
    assert all(moved)
    assert all(p.requires_grad for p in trainer.adversary.discriminator.parameters())


def test_adaptive_weight_balances_the_two_pulls():
    weight = torch.randn(3, 3, requires_grad=True)
    x = torch.randn(5, 3)
    near, far = (x @ weight).square().mean(), 100 * (x @ weight).sum()
    scale = adaptive_weight(near, far, weight)
    pulls = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (near, scale * far)]
    torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-3, atol=0)


def test_discriminator_sees_patches():
    logits = PatchDiscriminator(8, 2)(torch.randn(2, 3, 64, 64))
    assert logits.shape[:2] == (2, 1) and min(logits.shape[2:]) > 4
    assert generator_loss(logits).dim() == 0


def test_loss_terms():
    target = torch.zeros(1, 3, 4, 4)
    drawn = target.clone()
    drawn[..., 0, 0] = 0.5
    loss, terms = ReconstructionLoss(ReconstructionLossConfig(l1=1.0, l2=2.0, edges=1.0))(drawn, target)
    assert set(terms) == {"l1", "l2", "edges"}
    torch.testing.assert_close(loss, terms["l1"] + 2 * terms["l2"] + terms["edges"])
    torch.testing.assert_close(terms["l1"], torch.tensor(0.5 / 16))
    harder, _ = ReconstructionLoss(ReconstructionLossConfig(hard_pixels=1.0))(drawn, target)
    assert harder > terms["l1"]


def test_lpips_without_its_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="lpips=0"):
        ReconstructionLoss(ReconstructionLossConfig(lpips=1.0))


def test_orthogonalised_singular_values_are_about_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_usage():
    usage = measure_usage(torch.tensor([5, 5, 0, 0]))
    assert usage["codes/usage"] == 0.5 and usage["codes/perplexity"] == pytest.approx(2.0)


def test_batches_do_not_depend_on_the_number_of_processes():
    batches = ImageBatches([ImageSource(Squares(), 3.0), ImageSource(Squares(), 1.0)], 8, 16, seed=3)
    halves = [batches.for_rank(rank, 2)[5] for rank in range(2)]
    assert np.array_equal(np.concatenate(halves), batches[5])
    assert not np.array_equal(batches[5], batches[6])
    with pytest.raises(ValueError, match="3 processes"):
        batches.for_rank(0, 3)
    with pytest.raises(ValueError, match="at least one source"):
        ImageBatches([], 8, 16)


@pytest.mark.parametrize("adversary", [None, AdversaryConfig(start_step=0, channels=8, num_layers=1)])
def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path, adversary):
    """Not in weights, averages, codebook or adversary: a run that skips its third step, and one that ends there."""

    def poison(trainer: TokenizerTrainer, step: int) -> None:
        loss = trainer.loss

        def poisoned(drawn, target):
            value, terms = loss(drawn, target)
            return value * (float("nan") if trainer.step == step else 1.0), terms

        trainer.loss = poisoned

    good = make_trainer(tmp_path / "good", make_config(2, adversary=adversary))
    good.fit()
    skipping = make_trainer(tmp_path / "skip", make_config(3, adversary=adversary, max_skipped_steps=1))
    poison(skipping, 2)
    skipping.fit()
    stopping = make_trainer(tmp_path / "stop", make_config(3, adversary=adversary))
    poison(stopping, 2)
    with pytest.raises(FloatingPointError, match="step 3 is not finite"):
        stopping.fit()
    assert (skipping.step, stopping.step) == (3, 2)
    for bad in (skipping, stopping):
        assert [name for name, tensor in good.tensors().items() if not torch.equal(bad.tensors()[name], tensor)] == []
    assert load_checkpoint(tmp_path / "stop" / "checkpoints").step == 2


def test_every_image_is_shown_above_its_reconstruction():
    """Also those of a last row that is not full."""
    images_NCHW = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 3, 4, 4)
    page = np.asarray(draw_grid(images_NCHW, -images_NCHW, columns=8))
    assert page.shape == (4 * 4, 8 * 4, 3)
    tops = page[::4, ::4, 0].astype(int)
    assert (abs(tops[0] + tops[1] - 255) <= 1).all() and len(set(tops[0])) == 8
    assert abs(tops[2, :2] + tops[3, :2] - 255).max() <= 1 and (tops[2:, 2:] == 255).all()
    assert np.asarray(draw_grid(images_NCHW, images_NCHW, columns=4, rows=2)).shape == (4 * 4, 4 * 4, 3)
