"""A SigLIP vision tower: pixels (N, 3, H, W) in [-1, 1] to one feature a patch, (N, P, C), after its final norm.

Inside is a vision Transformer (arXiv 2010.11929): patches with learned positions through pre-norm layers. Names of parameters,
first values from a seed and results are those of timm's VisionTransformer without class token, pooling and head, which tests
compare it with. timm itself takes two seconds to import: all of its models, and torchvision.

Shapes: N images, P patches, C width, h heads, d head width. Source: SigLIP (arXiv 2303.15343), Janus (arXiv 2410.13848).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unimm.runtime.number_checks import check_number, check_whole

EPSILON = 1e-6
"""Of the norms, in every SigLIP."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a SigLIP vision tower; `janus` in conf/model are Janus' own (SigLIP-L/16 at 384 px)."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_whole(self, 1, "image_size", "patch_size", "width", "num_layers", "num_heads")
        check_number(self, "mlp_ratio", above=0)
        if self.image_size % self.patch_size:
            raise ValueError(f"An image of {self.image_size} px cannot be cut into patches of {self.patch_size} px.")
        if self.width % self.num_heads:
            raise ValueError(f"A vision width of {self.width} cannot be split into {self.num_heads} heads.")

    @property
    def num_patches(self) -> int:
        """P: patches of one image."""
        return (self.image_size // self.patch_size) ** 2


class VisionTower(nn.Module):
    """pixels (N, 3, H, W) in [-1, 1] -> patch features (N, P, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        # Without pool and classifier: SigLIP's attention pool would be parameters that no gradient reaches.
        self.transformer = VisionTransformer(
            config.image_size, config.patch_size, config.width, config.num_layers, config.num_heads, config.mlp_ratio
        )

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        with empty_attention(len(pixels_NCHW)):
            return self.transformer(pixels_NCHW)


def empty_attention(num: int) -> AbstractContextManager:
    """In this context attention over so many images or texts gives something, also where there are none: a GPU's fused
    attention gives None for nothing (PyTorch 2.11); plain products give nothing, as asked."""
    return nullcontext() if num else sdpa_kernel(SDPBackend.MATH)


class VisionTransformer(nn.Module):
    """pixels (N, 3, H, W) -> features (N, P, C)."""

    def __init__(self, image_size: int, patch_size: int, width: int, num_layers: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(patch_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width, num_heads, int(width * mlp_ratio)) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width, EPSILON)
        _draw(self.pos_embed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _draw(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """ValueError: images of another size than the tower is made for."""
        patches_NPC = self.patch_embed(pixels_NCHW)
        if patches_NPC.shape[1] != self.pos_embed.shape[1]:
            size = tuple(pixels_NCHW.shape[2:])
            raise ValueError(
                f"Images of {size} px are {patches_NPC.shape[1]} patches, not {self.pos_embed.shape[1]}: resize them."
            )
        return self.norm(self.blocks(patches_NPC + self.pos_embed))


class PatchEmbedding(nn.Module):
    """Each patch of an image as a vector: (N, 3, H, W) -> (N, P, C), row by row."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels_NCHW).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm layer: attention, then an MLP, each added to what it reads."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x_NPC: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x_NPC = x_NPC + self.attn(self.norm1(x_NPC), mask)
        return x_NPC + self.mlp(self.norm2(x_NPC))


class Attention(nn.Module):
    """Every patch attends to every patch of its image, or where a mask, (N or 1, 1, P or 1, P) bool, is true. fused_attn: by
    PyTorch's fused kernel, else by plain products."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.fused_attn = num_heads, True
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NPC: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        num_images, num_patches, width = x_NPC.shape
        shape = (num_images, num_patches, 3, self.num_heads, width // self.num_heads)
        q_NhPd, k_NhPd, v_NhPd = self.qkv(x_NPC).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            seen_NhPd = F.scaled_dot_product_attention(q_NhPd, k_NhPd, v_NhPd, attn_mask=mask)
        else:
            scores_NhPP = (q_NhPd * q_NhPd.shape[-1] ** -0.5) @ k_NhPd.transpose(-2, -1)
            if mask is not None:
                scores_NhPP = scores_NhPP.masked_fill(~mask, -math.inf)
            seen_NhPd = scores_NhPP.softmax(dim=-1) @ v_NhPd
        return self.proj(seen_NhPd.transpose(1, 2).reshape(x_NPC.shape))


class FeedForward(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_NPC: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x_NPC)))


@torch.no_grad()
def _draw(weight: torch.Tensor, std: float = 0.02) -> None:
    """A normal distribution, by the inverse of its distribution function as timm draws it (nobody is 100 deviations away)."""
    weight.uniform_(-1, 1).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)
