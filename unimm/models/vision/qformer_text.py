"""The text side of a Q-Former, by which its queries learn what is worth reading in an image before a language model listens:
BLIP-2's first stage (arXiv 2301.12597, section 3.2).

Queries and text tokens go through the same self-attention; texts have MLPs of their own, and only queries attend to the image.
What sees what decides what is learned:

    alone     texts see themselves, queries themselves             similarity of the two (ITC)
    together  every query and every token see all                  whether they belong together (ITM)
    written   queries see queries, a token what comes before it    the text, token by token (ITG)

Shapes: N images and texts, P patches, C vision width, Q queries, T text positions, W width of the Q-Former, D common width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.models.contrastive import Temperature
from unimm.models.vision.resamplers import MLP_RATIO, QFormer
from unimm.models.vision.tower import EPSILON, FeedForward, empty_attention
from unimm.runtime.number_checks import check_number, check_whole

NAME = "qformer_text"
"""The name of this head in a bundle."""

READ, WRITE = 0, 1


@dataclass(frozen=True)
class QFormerTextConfig:
    """Sizes of the text side.

    dim: D. text_positions: the longest text, with its begin and its end. logit_scale: the factor on cosine similarities at
    first. vocabulary_size, width, depth: of the unified model and its Q-Former; None: they are taken from it.
    """

    dim: int = 128
    text_positions: int = 64
    logit_scale: float = 1 / 0.07
    vocabulary_size: int | None = None
    width: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim")
        check_whole(self, 2, "text_positions")
        check_number(self, "logit_scale", above=0)

    def build(self) -> "QFormerText":
        """The text side, from chance. ValueError: a size of the unified model is missing."""
        return QFormerText(self)


class QFormerText(nn.Module):
    """Token embedding, the texts' own norms and MLPs, and the three heads."""

    def __init__(self, config: QFormerTextConfig) -> None:
        super().__init__()
        if config.vocabulary_size is None or config.width is None or config.depth is None:
            raise ValueError(
                "The text side of a Q-Former needs vocabulary_size, width and depth, which are the unified model's."
            )
        self.config, width = config, config.width
        self.embedding = nn.Embedding(config.vocabulary_size, width)
        # Whether a text is read or written, on its first token, as BLIP-2's [CLS] and [DEC].
        self.modes = nn.Embedding(2, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.text_positions, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, EPSILON) for _ in range(config.depth)])
        self.mlps = nn.ModuleList([FeedForward(width, MLP_RATIO * width) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, EPSILON)
        self.image_projection = nn.Linear(width, config.dim, bias=False)
        self.text_projection = nn.Linear(width, config.dim, bias=False)
        self.match_head = nn.Linear(width, 2)
        self.word_bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        self.temperature = Temperature(config.logit_scale, None)
        for table in (self.embedding.weight, self.modes.weight, self.pos_embed):
            nn.init.normal_(table, std=0.02)

    def read_text(self, qformer: QFormer, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Texts by themselves -> (N, D) of length 1: the vector of their first token."""
        x_NTW = self._embed(ids_NT, READ)
        none_N0W = x_NTW[:, :0]
        allowed = mask_NT[:, None, None, :]
        with empty_attention(len(ids_NT)):
            for block, side in self._layers(qformer):
                _, x_NTW = block(none_N0W, none_N0W, none_N0W, x_NTW, allowed, side)
        return F.normalize(self.text_projection(self.norm(x_NTW)[:, 0]).float(), dim=-1)

    def project_queries(self, queries_NQW: Tensor) -> Tensor:
        """What queries have read -> (N, Q, D) of length 1."""
        return F.normalize(self.image_projection(queries_NQW).float(), dim=-1)

    def match(self, qformer: QFormer, features_NPC: Tensor, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Logits (N, 2): that image and text do not belong together, that they do. The mean over queries."""
        num_queries = qformer.queries.num_embeddings
        everything_NS = torch.cat([mask_NT.new_ones(len(mask_NT), num_queries), mask_NT], dim=1)
        queries_NQW, _ = self._together(qformer, features_NPC, self._embed(ids_NT, READ), everything_NS[:, None, None, :])
        return self.match_head(queries_NQW).float().mean(1)

    def write(self, qformer: QFormer, features_NPC: Tensor, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """What queries have read, (N, Q, W), as if there were no text; and the logits of each token's next one, (N, T, V)."""
        num_queries, length = qformer.queries.num_embeddings, ids_NT.shape[1]
        size = num_queries + length
        allowed_SS = torch.ones(size, size, dtype=torch.bool, device=ids_NT.device).tril()
        allowed_SS[:num_queries, :num_queries] = True
        allowed = allowed_SS & torch.cat([mask_NT.new_ones(len(mask_NT), num_queries), mask_NT], dim=1)[:, None, None, :]
        queries_NQW, text_NTW = self._together(qformer, features_NPC, self._embed(ids_NT, WRITE), allowed)
        return queries_NQW, F.linear(text_NTW, self.embedding.weight, self.word_bias)

    def _together(self, qformer: QFormer, features_NPC: Tensor, text_NTW: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, Q, W) and tokens (N, T, W) through the blocks, behind their norms."""
        keys_NPC, values_NPC = qformer.context(features_NPC)
        q_NQW, t_NTW = qformer.queries.weight.expand(len(features_NPC), -1, -1), text_NTW
        with empty_attention(len(features_NPC)):
            for block, side in self._layers(qformer):
                q_NQW, t_NTW = block(q_NQW, keys_NPC, values_NPC, t_NTW, allowed, side)
        return qformer.norm(q_NQW), self.norm(t_NTW)

    def _embed(self, ids_NT: Tensor, mode: int) -> Tensor:
        first_NT = torch.arange(ids_NT.shape[1], device=ids_NT.device)[:, None] == 0
        return self.embedding(ids_NT) + self.pos_embed[:, : ids_NT.shape[1]] + first_NT * self.modes.weight[mode]

    def _layers(self, qformer: QFormer) -> list[tuple[nn.Module, tuple[nn.Module, nn.Module]]]:
        """Each block of the Q-Former with the texts' norm and MLP of its depth."""
        return list(zip(qformer.blocks, zip(self.norms, self.mlps, strict=True), strict=True))
