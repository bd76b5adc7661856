"""All quantizers keep the same promises; the cosine one also learns its codebook by averages and can be frozen."""

import pytest
import torch
import torch.nn.functional as F

from unimm.models.image_tokenizer.codebook import spread_points
from unimm.models.image_tokenizer.quantizers import QuantizerConfig

CONFIGS = {
    "cosine": QuantizerConfig("cosine", codebook_size=32, code_dim=4),
    "simvq": QuantizerConfig("simvq", codebook_size=32, code_dim=4),
    "fsq": QuantizerConfig("fsq", codebook_size=60, code_dim=3, levels=(5, 4, 3)),
    "lfq": QuantizerConfig("lfq", codebook_size=16, code_dim=4),
}


@pytest.fixture(params=CONFIGS)
def quantizer(request):
    torch.manual_seed(0)
    return CONFIGS[request.param].build()


def latents_for(quantizer, num=2, length=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, length, quantizer.config.code_dim, generator=generator)


def test_promises(quantizer):
    latents = latents_for(quantizer).requires_grad_()
    quantizer.train()
    quantized = quantizer(latents)
    assert quantized.latents.shape == latents.shape and quantized.codes.shape == latents.shape[:2]
    assert quantized.codes.dtype == torch.long and quantized.loss.dim() == 0
    assert quantized.codes.min() >= 0 and quantized.codes.max() < quantizer.config.codebook_size
    (quantized.latents.sum() + quantized.loss).backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_lookup_inverts_and_encode_agrees(quantizer):
    quantizer.eval()
    latents = latents_for(quantizer)
    quantized = quantizer(latents)
    assert torch.equal(quantizer.encode(latents), quantized.codes)
    torch.testing.assert_close(quantizer.lookup(quantized.codes), quantized.latents, atol=1e-6, rtol=1e-6)
    codes = torch.arange(quantizer.config.codebook_size)
    assert quantizer.codebook.shape == (quantizer.config.codebook_size, quantizer.config.code_dim)
    if quantizer.config.kind != "fsq":  # fsq squashes before it rounds: its codes are not their own nearest
        assert torch.equal(quantizer.encode(quantizer.lookup(codes)[None])[0], codes)


def test_stays_fp32_under_autocast(quantizer):
    quantizer.train()
    latents = latents_for(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(latents.bfloat16())
    assert quantized.latents.dtype == torch.float32
    assert quantizer.codebook.dtype == torch.float32


def test_stays_fp32_when_the_model_is_cast(quantizer):
    codebook = quantizer.codebook.clone()
    model = torch.nn.Sequential(quantizer).to(torch.bfloat16)
    assert torch.equal(model[0].codebook, codebook)


def test_eval_learns_nothing(quantizer):
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()
    quantizer(latents_for(quantizer))
    quantizer.encode(latents_for(quantizer))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


def test_cosine_codebook_follows_by_averages_and_stays_normalised():
    torch.manual_seed(0)
    quantizer = QuantizerConfig(codebook_size=4, code_dim=4, dead_code_threshold=0.0).build().train()
    goals = F.normalize(torch.eye(4) + 0.05, dim=-1)
    quantizer.load_codebook(goals + 0.3 * torch.randn(4, 4), freeze=False)
    for _ in range(1000):
        quantizer(goals[None])
    torch.testing.assert_close(quantizer.codebook, goals, atol=1e-3, rtol=0)
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(4))


def test_cosine_replaces_dead_codes():
    torch.manual_seed(0)
    config = QuantizerConfig(codebook_size=64, code_dim=4, dead_code_threshold=0.5, decay=0.8)
    quantizer = config.build().train()
    latents = F.normalize(torch.tensor([1.0, 0.2, 0.0, 0.0]) + 0.05 * torch.randn(1, 256, 4), dim=-1)
    before = quantizer.encode(latents).unique().numel()
    for _ in range(20):
        quantizer(latents)
    assert quantizer.encode(latents).unique().numel() > max(20, 3 * before)


def test_loaded_codebook_is_normalised_and_frozen():
    quantizer = CONFIGS["cosine"].build()
    quantizer.load_codebook(torch.randn(32, 4) * 5)
    loaded = quantizer.codebook.clone()
    torch.testing.assert_close(loaded.norm(dim=-1), torch.ones(32))
    quantizer.train()(latents_for(quantizer))
    assert torch.equal(quantizer.codebook, loaded)
    with pytest.raises(ValueError, match=r"\(31, 4\)"):
        quantizer.load_codebook(torch.randn(31, 4))


def test_spread_codes_lie_apart_and_stay():
    config = QuantizerConfig("cosine", codebook_size=64, code_dim=3)
    quantizer = config.build().train()
    quantizer.spread()
    codes = quantizer.codebook.clone()
    torch.testing.assert_close(codes, spread_points(64, 3))
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(64))

    def nearest_angles(points):
        return (points @ points.T - 2 * torch.eye(64)).amax(1).acos().rad2deg()

    chance = F.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    # 64 caps that cover a sphere evenly are about 27 degrees apart.
    assert nearest_angles(codes).min() > 22 > 5 > nearest_angles(chance).min()
    for _ in range(5):
        quantizer(F.normalize(torch.ones(1, 40, 3) + 0.01 * torch.randn(1, 40, 3), dim=-1))
    assert torch.equal(quantizer.codebook, codes)


@pytest.mark.parametrize("kind", ["simvq", "fsq", "lfq"])
def test_only_cosine_codes_can_be_spread(kind):
    with pytest.raises(ValueError, match=f"this is '{kind}'"):
        CONFIGS[kind].build().spread()


def test_settings_that_contradict_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        QuantizerConfig("vq")
    with pytest.raises(ValueError, match="their product"):
        QuantizerConfig("fsq", codebook_size=64, code_dim=3, levels=(5, 4, 3))
    with pytest.raises(ValueError, match=r"2\*\*code_dim"):
        QuantizerConfig("lfq", codebook_size=100, code_dim=4)
