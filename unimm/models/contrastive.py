"""Contrastive heads: images and texts as unit vectors of one space, in which what belongs together lies close.

    pixels (N, 3, H, W) -- vision tower of the unified model --> (N, P, C) -- image pool, projection --> (N, D)
    ids (N, T) -- text tower --> (N, T, W) -- text pool, projection --> (N, D)

The vision tower is the unified model's own and is not held twice: `with_tower` says which one looks. The text tower is a small
pre-norm Transformer of the same layers. A softmax over a batch (CLIP, arXiv 2103.00020) or a sigmoid for each pair (SigLIP,
arXiv 2303.15343) reads the similarities `logit_scale.exp() * images @ texts.T + logit_bias`.

Shapes: N images or texts, P patches, T text positions, C vision width, W text width, D width of the common space, h heads.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.models.vision.tower import EPSILON, Block, FeedForward, VisionTower, empty_attention
from unimm.runtime.number_checks import check_number, check_whole

IMAGE_POOLS, TEXT_POOLS = ("attention", "mean"), ("last", "attention", "mean")
NAME = "contrastive"
"""The name of these heads in a bundle."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Sizes of a text tower and of the projections into the common space.

    dim: D. text_width, text_layers, text_heads, text_mlp_ratio: of the text tower.
    text_positions: the longest text, with its begin and its end.
    causal: a token of a text attends to earlier ones alone (CLIP); else to all of them (SigLIP).
    text_pool, image_pool: how the vectors of tokens or patches become one: the last token's ("last"), one learned query that
        attends to all of them ("attention", as SigLIP has it), or their "mean".
    logit_scale: the factor on cosine similarities at first, 1 / temperature. logit_bias: added to them at first; None: nothing
        is added.
    vocabulary_size, vision_width, vision_heads: of the unified model; None: they are taken from it.
    """

    dim: int = 128
    text_width: int = 192
    text_layers: int = 4
    text_heads: int = 6
    text_mlp_ratio: float = 4.0
    text_positions: int = 64
    causal: bool = True
    text_pool: str = "last"
    image_pool: str = "attention"
    logit_scale: float = 1 / 0.07
    logit_bias: float | None = None
    vocabulary_size: int | None = None
    vision_width: int | None = None
    vision_heads: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "text_width", "text_layers", "text_heads")
        check_whole(self, 2, "text_positions")
        check_number(self, "text_mlp_ratio", "logit_scale", above=0)
        for name, pools in (("text_pool", TEXT_POOLS), ("image_pool", IMAGE_POOLS)):
            if getattr(self, name) not in pools:
                raise ValueError(f"Unknown {name} '{getattr(self, name)}': use one of {', '.join(pools)}.")
        if self.text_width % self.text_heads:
            raise ValueError(f"A text width of {self.text_width} cannot be split into {self.text_heads} heads.")

    def build(self) -> "ContrastiveHeads":
        """The heads, from chance, without a vision tower.

        Raises:
            ValueError: a size of the unified model is missing.
        """
        return ContrastiveHeads(self)


class ContrastiveHeads(nn.Module):
    """Text tower, pools, projections, temperature: everything beside the vision tower.

    dim: D. logit_scale: (1,) the logarithm of the factor on similarities; logit_bias: (1,), or None.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        missing = [name for name in ("vocabulary_size", "vision_width", "vision_heads") if getattr(config, name) is None]
        if missing:
            raise ValueError(f"Contrastive heads need {missing[0]}, which is the unified model's: give its size.")
        assert config.vocabulary_size is not None and config.vision_width is not None and config.vision_heads is not None
        self.config, self.dim = config, config.dim
        self.text_tower = TextTower(config, config.vocabulary_size)
        self.image_pool = Pool(config.image_pool, config.vision_width, config.vision_heads)
        self.image_projection = nn.Linear(config.vision_width, config.dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.dim, bias=False)
        self.temperature = Temperature(config.logit_scale, config.logit_bias)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self._tower: VisionTower | None = None

    def with_tower(self, tower: VisionTower) -> "ContrastiveHeads":
        """The same heads, with the same parameters, that look through this tower."""
        other = copy.copy(self)
        object.__setattr__(other, "_tower", tower)  # beside the module's own: its parameters are the unified model's
        return other

    @property
    def logit_scale(self) -> nn.Parameter:
        """(1,) The logarithm of the factor on cosine similarities."""
        return self.temperature.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """(1,) What is added to them, if anything is."""
        return self.temperature.logit_bias

    def parts(self) -> dict[str, nn.Module]:
        """The parts that a stage can name."""
        head = [self.image_pool, self.image_projection, self.text_projection, self.temperature]
        return {"text_tower": self.text_tower, "contrastive_head": nn.ModuleList(head)}

    def set_attention(self, backend: str) -> None:
        """As `PixelsPort.set_attention`: with "documents", for training on a CPU, plain products."""
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", backend != "documents")  # noqa: B010 - a plain attribute, whatever the types say

    def embed_images(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> (N, D) float32, of length 1.

        Raises:
            ValueError: the images do not have the size that the tower was made for.
        """
        assert self._tower is not None, "with_tower first"
        return self.embed_features(self._tower(pixels.to(next(self._tower.parameters()).dtype)))

    def embed_features(self, features_NPC: Tensor) -> Tensor:
        """What the vision tower makes of images, (N, P, C) -> (N, D) float32, of length 1."""
        dtype = self.image_projection.weight.dtype
        return F.normalize(self.image_projection(self.image_pool(features_NPC.to(dtype))).float(), dim=-1)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (N, T) long, as `TextTokenizer.sentence` writes them, mask (N, T) bool, true where a token is, padded on the
        right -> (N, D) float32, of length 1.

        Raises:
            ValueError: a text is longer than the tower was made for.
        """
        return F.normalize(self.text_projection(self.text_tower(ids, mask)).float(), dim=-1)


class Temperature(nn.Module):
    """The factor on cosine similarities, as its logarithm, and what is added to them: (1,) each, learned."""

    def __init__(self, scale: float, bias: float | None) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([math.log(scale)]))  # of one dimension: FSDP cuts no scalars
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))


class TextTower(nn.Module):
    """ids (N, T), mask (N, T) -> one vector a text, (N, W): embedding, pre-norm layers, norm, pool."""

    def __init__(self, config: ContrastiveConfig, vocabulary_size: int) -> None:
        super().__init__()
        width = config.text_width
        self.causal = config.causal
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.text_positions, width))
        hidden = int(width * config.text_mlp_ratio)
        self.blocks = nn.ModuleList([Block(width, config.text_heads, hidden) for _ in range(config.text_layers)])
        self.norm = nn.LayerNorm(width, EPSILON)
        self.pool = Pool(config.text_pool, width, config.text_heads)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        _initialize(self.blocks)

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """ValueError: the texts are longer than the tower was made for."""
        length, most = ids_NT.shape[1], self.pos_embed.shape[1]
        if length > most:
            raise ValueError(f"A text takes {length} positions, and the text tower was made for {most}: cut it.")
        allowed = mask_NT[:, None, None, :]
        if self.causal:
            allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=ids_NT.device).tril()
        x_NTW = self.embedding(ids_NT) + self.pos_embed[:, :length]
        with empty_attention(len(ids_NT)):
            for block in self.blocks:
                x_NTW = block(x_NTW, allowed)
            return self.pool(self.norm(x_NTW), mask_NT)


class Pool(nn.Module):
    """Vectors (N, T, W) -> one, (N, W), by one of `TEXT_POOLS`.

    "attention": a learned query attends to all of them, and an MLP is added to what it reads (SigLIP's head; Set Transformer,
    arXiv 1810.00825).
    """

    def __init__(self, way: str, width: int, num_heads: int) -> None:
        super().__init__()
        self.way, self.num_heads = way, num_heads
        if way != "attention":
            return
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.mlp = FeedForward(width, 4 * width)
        nn.init.normal_(self.query, std=width**-0.5)
        _initialize(self)

    def forward(self, x_NTW: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """mask_NT: true where a vector counts; None: everywhere."""
        if self.way == "mean":
            if mask_NT is None:
                return x_NTW.mean(1)
            return (x_NTW * mask_NT[..., None]).sum(1) / mask_NT.sum(1, keepdim=True).clamp(min=1)
        if self.way == "last":
            if mask_NT is None:
                return x_NTW[:, -1]
            last_N = mask_NT.sum(1).clamp(min=1) - 1
            return x_NTW[torch.arange(len(x_NTW), device=x_NTW.device), last_N]
        num, length, width = x_NTW.shape
        split = (self.num_heads, width // self.num_heads)
        query_NhTd = self.query.expand(num, 1, width).reshape(num, 1, *split).transpose(1, 2)
        key_NhTd, value_NhTd = self.key_value(x_NTW).reshape(num, length, 2, *split).permute(2, 0, 3, 1, 4).unbind(0)
        scores_NhT = (query_NhTd * split[1] ** -0.5) @ key_NhTd.transpose(-2, -1)  # one query: nothing for a fused kernel
        if mask_NT is not None:
            scores_NhT = scores_NhT.masked_fill(~mask_NT[:, None, None, :], -math.inf)
        read_NW = self.proj((scores_NhT.softmax(-1) @ value_NhTd).transpose(1, 2).reshape(num, width))
        return read_NW + self.mlp(self.norm(read_NW))


def pad_texts(texts: list[list[int]], device: Any = None) -> tuple[Tensor, Tensor]:
    """The ids of several texts as `embed_texts` takes them: ids (N, T) long, mask (N, T) bool."""
    longest = max(map(len, texts), default=0)
    ids_NT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts], dtype=torch.long).view(len(texts), longest)
    lengths_N = torch.tensor([len(ids) for ids in texts], dtype=torch.long)
    return ids_NT.to(device), (torch.arange(longest) < lengths_N[:, None]).to(device)


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
