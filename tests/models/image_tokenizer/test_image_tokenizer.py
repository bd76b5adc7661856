"""The image tokenizer is transformers' JanusVQVAE, number by number, and its GroupNorm is PyTorch's."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from unimm.checkpoints.image_tokenizer_folder import fingerprint, load_image_tokenizer, save_image_tokenizer
from unimm.models.image_tokenizer.layers import GroupNorm
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig

CONFIGS = [
    ImageTokenizerConfig(32, 32, (1, 2), 1, 32, quantizer=QuantizerConfig(codebook_size=64)),
    ImageTokenizerConfig(32, 32, (1, 1, 2, 4), 1, 64, quantizer=QuantizerConfig(codebook_size=128, code_dim=4)),
    ImageTokenizerConfig(48, 64, (1, 1, 2), 2, 48, quantizer=QuantizerConfig(codebook_size=32, code_dim=16)),
]


def make_pixels(config: ImageTokenizerConfig, num_images: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num_images, 3, config.image_size, config.image_size, generator=generator) * 2 - 1


def as_janus(tokenizer: ImageTokenizer) -> JanusVQVAE:
    """transformers' model with the same weights: every name but the codebook's is the same."""
    config = tokenizer.config
    theirs = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=config.code_dim,
            num_embeddings=config.quantizer.codebook_size,
            latent_channels=config.latent_channels,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multipliers),
            num_res_blocks=config.num_res_blocks,
            num_patches=config.grid_size,
        )
    )
    weights = {name: tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith("quantize.")}
    theirs.load_state_dict({**weights, "quantize.embedding.weight": tokenizer.quantize.codebook})
    return theirs.eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_is_janus_vqvae(config):
    torch.manual_seed(0)
    ours = ImageTokenizer(config).eval()
    theirs, pixels = as_janus(ours).double(), make_pixels(config).double()
    ours.double()  # all but the quantizer
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(pixels), theirs.encoder(pixels), atol=1e-9, rtol=1e-9)
        codes = ours.encode(pixels)
        assert torch.equal(codes.flatten(), theirs.encode(pixels).image_tokens)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours.float().decode(codes), theirs.float().decode(codes), atol=1e-4, rtol=1e-4)


def test_nearest_code_by_angle_as_deepseek():
    """Latents and codebook are both l2-normalised before the nearest neighbour is looked for."""
    tokenizer = ImageTokenizer(CONFIGS[0]).eval()
    codebook = torch.randn(64, 8) * 3
    tokenizer.quantize.load_codebook(codebook)
    latents = torch.randn(2, 5, 8)
    distances = torch.cdist(F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)[None])
    assert torch.equal(tokenizer.quantize.encode(latents), distances.argmin(-1))
    codes = tokenizer.quantize.encode(latents)
    torch.testing.assert_close(tokenizer.quantize.lookup(codes), F.normalize(codebook, dim=-1)[codes])


def test_shapes_and_refusals():
    tokenizer = ImageTokenizer(CONFIGS[1]).eval()
    assert (tokenizer.grid_size, tokenizer.num_codes, tokenizer.codebook_size) == (4, 16, 128)
    pixels = make_pixels(tokenizer.config, 3)
    codes = tokenizer.encode(pixels)
    assert codes.shape == (3, 16) and codes.dtype == torch.long
    assert tokenizer.decode(codes).shape == pixels.shape
    assert tokenizer.encode(pixels[:0]).shape == (0, 16)
    with pytest.raises(ValueError, match="resize"):
        tokenizer.encode(pixels[..., :16])
    with pytest.raises(ValueError, match="16 codes"):
        tokenizer.decode(codes[:, :5])
    with pytest.raises(ValueError, match="multiple of 32"):
        ImageTokenizerConfig(base_channels=48)
    with pytest.raises(ValueError, match="halved"):
        ImageTokenizerConfig(image_size=100)


def test_forward_reaches_every_parameter_and_matches_encode_decode():
    torch.manual_seed(0)
    tokenizer, pixels = ImageTokenizer(CONFIGS[0]), make_pixels(CONFIGS[0])
    drawn = tokenizer.train()(pixels)
    (F.mse_loss(drawn.pixels, pixels) + drawn.quantizer_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tokenizer.parameters())
    drawn = tokenizer.eval()(pixels)
    assert torch.equal(drawn.codes, tokenizer.encode(pixels))
    torch.testing.assert_close(drawn.pixels, tokenizer.decode(drawn.codes))


def test_frozen_does_not_move():
    tokenizer = ImageTokenizer(CONFIGS[0]).freeze()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    tokenizer.train()(make_pixels(CONFIGS[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in tokenizer.parameters())


def test_image_in_a_batch_is_the_image_alone():
    torch.manual_seed(0)
    tokenizer, pixels = ImageTokenizer(CONFIGS[1]).eval(), make_pixels(CONFIGS[1], 3)
    codes = tokenizer.encode(pixels)
    alone = torch.cat([tokenizer.encode(image[None]) for image in pixels])
    assert torch.equal(codes, alone)


@pytest.mark.parametrize(("channels", "side"), [(32, 8), (64, 4), (96, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_group_norm_is_pytorchs(channels, side, dtype):
    torch.manual_seed(0)
    ours, theirs = GroupNorm(32, channels, eps=1e-6), torch.nn.GroupNorm(32, channels, eps=1e-6)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 0.15, "rtol": 0.05}
    if dtype == torch.float64:
        ours, theirs = ours.double(), theirs.double()
    values, pull = torch.randn(2, 3, channels, side, side).to(dtype) + torch.tensor(0.5, dtype=dtype)
    gradients = []
    for norm in (ours, theirs):
        x = values.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        y = norm(x)
        y.backward(pull)
        gradients.append((y, x.grad, norm.weight.grad, norm.bias.grad))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


def test_folder_keeps_all_and_fingerprint_notices(tmp_path):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIGS[1])
    tokenizer.train()(make_pixels(CONFIGS[1]))  # so that the averages are not the initial ones
    save_image_tokenizer(tmp_path / "t", tokenizer)
    again = load_image_tokenizer(tmp_path / "t")
    assert again.config == tokenizer.config and fingerprint(again) == fingerprint(tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), tokenizer.state_dict().values(), strict=True))
    other = ImageTokenizer(dataclasses.replace(CONFIGS[1], image_size=64))
    other.load_state_dict(tokenizer.state_dict())
    assert fingerprint(other) != fingerprint(tokenizer)
    with torch.no_grad():
        again.decoder.conv_out.bias[0] += 1e-3
    assert fingerprint(again) != fingerprint(tokenizer)
    with pytest.raises(ValueError, match="no image tokenizer"):
        load_image_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="is not an image tokenizer's folder"):
        save_image_tokenizer(tmp_path, tokenizer)
    save_image_tokenizer(tmp_path / "t", again)
    assert fingerprint(load_image_tokenizer(tmp_path / "t")) == fingerprint(again)


def test_vq16_is_llamagens_size():
    """LlamaGen's VQ-16 has 72M parameters and 16 x 16 codes for 256 px."""
    with torch.device("meta"):
        tokenizer = ImageTokenizer(ImageTokenizerConfig())
    num_parameters = sum(p.numel() for p in tokenizer.parameters()) + 16384 * 8
    assert num_parameters == 71_883_403
    assert (tokenizer.grid_size, tokenizer.num_codes, tokenizer.codebook_size) == (16, 256, 16384)
