"""Resamplers: a fixed number of learned queries reads an image, whatever it has of patches: (N, P, C) -> (N, Q, D).

    Q-Former   blocks of self-attention among the queries, every k-th with cross-attention to the image, and an MLP; BLIP-2
               (arXiv 2301.12597). Its layers are pre-norm here: BLIP-2's come from BERT, and are post-norm.
    Perceiver  blocks in which the queries attend to the image and themselves in one attention, and an MLP; Flamingo
               (arXiv 2204.14198). GELU stands for its squared ReLU.

Neither paper tells a patch's place by more than its feature, and attention begins the same everywhere. With `grid`, keys carry
fixed sine-cosine positions, a square number of queries starts from the positions of a coarser grid (Qwen-VL, arXiv 2308.12966),
and queries and keys start from one map: a query then first looks at its own cell of the image, with half of its attention, and
a quarter of the tokens begins as a kind of average pool.

Shapes: N images, P patches, C vision width, Q queries, W width of the blocks, D trunk width, S what is attended to, h heads,
d head width.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unimm.models.vision.tower import EPSILON, Attention, FeedForward

MLP_RATIO = 4
"""Of the MLP in a block, in both papers."""

OCTAVES = 3
"""Positions oscillate from half a period across the image to 2^3 of these."""

POSITION_SCALE = 4.0
"""Of the positions in keys, beside features of unit variance: 1 gives a query its own cell with 0.14 of its attention at first,
4 with 0.49, where 16 queries read 64 patches of the demo; without a common map it is its share of the area, 0.06."""


class CrossAttention(nn.Module):
    """Queries (N, Q, W) attend to a context (N, S, C) -> (N, Q, W). fused_attn: by PyTorch's fused kernel, else by plain
    products (`PixelsPort.set_attention`)."""

    def __init__(self, width: int, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.fused_attn = num_heads, True
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(context_width, width)
        self.v = nn.Linear(context_width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NQW: Tensor, keys_NSC: Tensor, values_NSC: Tensor) -> Tensor:
        """keys_NSC: the context with its positions, values_NSC: without."""
        q_NhQd, k_NhSd, v_NhSd = (
            one.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for one in (self.q(x_NQW), self.k(keys_NSC), self.v(values_NSC))
        )
        if self.fused_attn:
            seen_NhQd = F.scaled_dot_product_attention(q_NhQd, k_NhSd, v_NhSd)
        else:
            scores_NhQS = (q_NhQd * q_NhQd.shape[-1] ** -0.5) @ k_NhSd.transpose(-2, -1)
            seen_NhQd = scores_NhQS.softmax(dim=-1) @ v_NhSd
        return self.proj(seen_NhQd.transpose(1, 2).flatten(2))


class QFormerBlock(nn.Module):
    """Self-attention of the queries; attention to the image where the block has it; an MLP. Each added to what it reads."""

    def __init__(self, width: int, vision_width: int, num_heads: int, is_cross: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width, EPSILON) if is_cross else None
        self.cross = CrossAttention(width, vision_width, num_heads) if is_cross else None
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = FeedForward(width, MLP_RATIO * width)

    def forward(
        self,
        x_NQW: Tensor,
        keys_NPC: Tensor,
        values_NPC: Tensor,
        text_NTW: Tensor | None = None,
        allowed: Tensor | None = None,
        side: tuple[nn.Module, nn.Module] | None = None,
    ) -> Any:
        """Queries (N, Q, W) -> (N, Q, W). With a text (N, T, W) that goes along: queries and text, (N, Q, W) and (N, T, W).

        Texts go this way too, so that whatever wraps a block (shards, activation checkpointing) sees all that is computed.

        x_NQW: of no queries, (N, 0, W), for a text alone: then nothing looks at the image. allowed: what attends to what,
        queries before tokens. side: the text's own norm and MLP.
        """
        if text_NTW is None or side is None:
            return self._look(x_NQW + self.attn(self.norm1(x_NQW)), keys_NPC, values_NPC)
        x_NSW, num_queries = torch.cat([x_NQW, text_NTW], dim=1), x_NQW.shape[1]
        x_NSW = x_NSW + self.attn(self.norm1(x_NSW), allowed)
        x_NQW, text_NTW = x_NSW[:, :num_queries], x_NSW[:, num_queries:]
        norm, mlp = side
        return self._look(x_NQW, keys_NPC, values_NPC) if num_queries else x_NQW, text_NTW + mlp(norm(text_NTW))

    def _look(self, x_NQW: Tensor, keys_NPC: Tensor, values_NPC: Tensor) -> Tensor:
        if self.cross is not None and self.norm_cross is not None:
            x_NQW = x_NQW + self.cross(self.norm_cross(x_NQW), keys_NPC, values_NPC)
        return x_NQW + self.mlp(self.norm2(x_NQW))


class PerceiverBlock(nn.Module):
    """One attention of the queries to the image and themselves, then an MLP. Each added to what it reads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.cross = CrossAttention(width, width, num_heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = FeedForward(width, MLP_RATIO * width)

    def forward(self, x_NQW: Tensor, keys_NPW: Tensor, values_NPW: Tensor) -> Tensor:
        own_NQW = self.norm1(x_NQW)
        keys_NSW, values_NSW = torch.cat([keys_NPW, own_NQW], dim=1), torch.cat([values_NPW, own_NQW], dim=1)
        x_NQW = x_NQW + self.cross(own_NQW, keys_NSW, values_NSW)
        return x_NQW + self.mlp(self.norm2(x_NQW))


class Resampler(nn.Module):
    """What both have: queries, a norm of the image's features, blocks, a norm and a linear layer behind them.

    queries: (Q, W), an embedding to the optimizers: AdamW moves it, without weight decay.
    """

    blocks: nn.ModuleList
    reader: nn.Module

    def __init__(self, vision_width: int, trunk_width: int, width: int, num_queries: int, grid: bool) -> None:
        super().__init__()
        self.width, self.grid = width, grid
        self.queries = nn.Embedding(num_queries, width)
        nn.init.normal_(self.queries.weight, std=0.02)
        if grid and math.isqrt(num_queries) ** 2 == num_queries:
            with torch.no_grad():
                self.queries.weight.add_(grid_positions(num_queries, width, self.queries.weight.device))
        self.norm_image = nn.LayerNorm(vision_width, EPSILON)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, trunk_width)

    def _look_near(self) -> None:
        """Let queries and keys start from one map, where they are as wide, so that equal positions attend to each other."""
        for layer in self.modules():
            if self.grid and isinstance(layer, CrossAttention) and layer.q.weight.shape == layer.k.weight.shape:
                with torch.no_grad():
                    layer.k.weight.copy_(layer.q.weight)
                    layer.k.bias.copy_(layer.q.bias)

    def num_positions(self, num_patches: int) -> int:
        """As many as queries."""
        if self.grid and math.isqrt(num_patches) ** 2 != num_patches:
            raise ValueError(f"{num_patches} patches are no square: add model.projector.grid=false.")
        return self.queries.num_embeddings

    def forward(self, features_NPC: Tensor) -> Tensor:
        return self.head(self.read(features_NPC))

    def read(self, features_NPC: Tensor) -> Tensor:
        """(N, Q, W): the queries once they have read the images, behind their norm. A contrastive loss, as in BLIP-2's first
        stage, takes these."""
        keys_NPW, values_NPW = self.context(features_NPC)
        x_NQW = self.queries.weight.expand(len(features_NPC), -1, -1)
        # A GPU's fused attention gives None for no images at all (PyTorch 2.11); plain products give nothing, as asked.
        with nullcontext() if len(features_NPC) else sdpa_kernel(SDPBackend.MATH):
            for block in self.blocks:
                x_NQW = block(x_NQW, keys_NPW, values_NPW)
        return self.norm(x_NQW)

    def context(self, features_NPC: Tensor) -> tuple[Tensor, Tensor]:
        """What queries attend to, (N, P, W) or (N, P, C): keys, with the positions of patches, and values, without."""
        values_NPW = self.reader(self.norm_image(features_NPC))
        if not self.grid:
            return values_NPW, values_NPW
        num_patches, width = values_NPW.shape[1:]
        places_PW = POSITION_SCALE * grid_positions(num_patches, width, values_NPW.device)
        return values_NPW + places_PW.to(values_NPW.dtype), values_NPW

    def path(self) -> list[nn.Module]:
        """What sees every patch, and what sees every query: to count operations."""
        keys = [layer for block in self.blocks for name, layer in block.named_modules() if name in ("cross.k", "cross.v")]
        seen = {id(layer) for layer in keys} | {id(layer) for layer in self.reader.modules()}
        others = [layer for layer in self.modules() if isinstance(layer, nn.Linear) and id(layer) not in seen]
        return [nn.ModuleList([self.reader, *keys]), nn.ModuleList(others)]

    def passes(self, num_images: int, num_patches: int) -> list[tuple[int, int]]:
        """For each of `path`: vectors that go through it, and operations of attention beside them, forward."""
        num_queries = self.queries.num_embeddings
        pairs = sum(self._pairs(block, num_patches, num_queries) for block in self.blocks)
        on_patches = num_images * (num_patches + self._own_keys())
        return [(on_patches, 0), (num_images * num_queries, 4 * num_images * pairs * self.width)]

    def _own_keys(self) -> int:
        """Queries that are keys beside the patches."""
        return 0

    def _pairs(self, block: nn.Module, num_patches: int, num_queries: int) -> int:
        """Pairs of a query and what it attends to, in a block."""
        raise NotImplementedError


class QFormer(Resampler):
    """(N, P, C) -> (N, Q, D)."""

    def __init__(
        self,
        vision_width: int,
        trunk_width: int,
        width: int,
        num_queries: int,
        num_heads: int,
        depth: int,
        grid: bool = True,
        cross_every: int = 2,
    ) -> None:
        super().__init__(vision_width, trunk_width, width, num_queries, grid)
        self.reader = nn.Identity()
        self.blocks = nn.ModuleList(
            QFormerBlock(width, vision_width, num_heads, number % cross_every == 0) for number in range(depth)
        )
        self._look_near()

    def _pairs(self, block: nn.Module, num_patches: int, num_queries: int) -> int:
        is_cross = isinstance(block, QFormerBlock) and block.cross is not None
        return num_queries * (num_queries + is_cross * num_patches)


class Perceiver(Resampler):
    """(N, P, C) -> (N, Q, D)."""

    def __init__(
        self,
        vision_width: int,
        trunk_width: int,
        width: int,
        num_queries: int,
        num_heads: int,
        depth: int,
        grid: bool = True,
    ) -> None:
        super().__init__(vision_width, trunk_width, width, num_queries, grid)
        self.reader = nn.Identity() if width == vision_width else nn.Linear(vision_width, width)
        self.blocks = nn.ModuleList(PerceiverBlock(width, num_heads) for _ in range(depth))
        self._look_near()

    def _own_keys(self) -> int:
        return self.queries.num_embeddings

    def _pairs(self, block: nn.Module, num_patches: int, num_queries: int) -> int:
        return num_queries * (num_patches + num_queries)


def grid_positions(num_places: int, width: int, device: torch.device) -> Tensor:
    """(num_places, width) float32: sines and cosines of where each place of a square grid lies, row by row; its row in one
    half, its column in the other. Grids of different sizes over the same image agree."""
    side = math.isqrt(num_places)
    if side**2 != num_places:
        raise ValueError(f"{num_places} places are no square grid.")
    if device.type == "meta":
        return torch.empty(num_places, width, device=device)
    centres_G = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    waves_F = math.pi * 2 ** torch.linspace(0, OCTAVES, width // 4, device=device)
    angles_GF = centres_G[:, None] * waves_F
    axis_GE = torch.cat([angles_GF.sin(), angles_GF.cos()], dim=1)
    rows, columns = axis_GE[:, None].expand(-1, side, -1), axis_GE[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(num_places, width)
