"""Our vision Transformer is timm's: names, first values, features and gradients."""

from functools import partial

import pytest
import torch
from torch import nn

from unimm.models.vision.tower import VisionConfig, VisionTower, VisionTransformer

SIZES = VisionConfig(image_size=32, patch_size=8, width=48, num_layers=3, num_heads=4, mlp_ratio=3.7362)


def timms() -> nn.Module:
    timm = pytest.importorskip("timm.models.vision_transformer")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 3.7362}
    without = {"class_token": False, "global_pool": "", "num_classes": 0}
    norm = partial(nn.LayerNorm, eps=1e-6)
    return timm.VisionTransformer(**sizes, **without, norm_layer=norm, act_layer=nn.GELU)


def test_a_seed_gives_the_tower_that_timm_makes_of_it() -> None:
    torch.manual_seed(3)
    theirs, next_number = timms(), torch.rand(1)
    torch.manual_seed(3)
    ours = VisionTower(SIZES).transformer
    assert torch.rand(1) == next_number
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("fused", [True, False])
def test_features_and_gradients_are_timms(fused: bool) -> None:
    torch.manual_seed(0)
    theirs, ours = timms(), VisionTransformer(32, 8, 48, 3, 4, 3.7362)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    for module in (*theirs.modules(), *ours.modules()):
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 - a plain attribute, whatever the types say
    found, expected = ours(pixels), theirs.forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for features in (found, expected):
        features.square().sum().backward()
    gradients = {name: one.grad for name, one in theirs.named_parameters()}
    for name, one in ours.named_parameters():
        torch.testing.assert_close(one.grad, gradients[name], rtol=0, atol=0, msg=name)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="36 patches, not 16"):
        VisionTower(SIZES)(torch.zeros(1, 3, 48, 48))
