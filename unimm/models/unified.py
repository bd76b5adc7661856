"""The unified model: one autoregressive Transformer and a port for each kind of element.

    tokens, pixels, codes --ports embed--> embeddings (B, T, D) --trunk--> hidden (B, T, D) --port of the next element--> ids

Shapes: B rows, T positions, D trunk width. The trunk is any causal language model of `transformers`, without its own token
embedding and head: those belong to the text port. One of Llama's shape is computed by layers of our own.
Source: Janus (arXiv 2410.13848), Janus-Pro (arXiv 2501.17811).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import Cache

from unimm.batch import PADDING, Batch
from unimm.models.attention import Mask, cache_keyword, mask_of, register_documents
from unimm.models.llama import LlamaTrunk
from unimm.models.llama_layer import is_llama_shaped
from unimm.models.ports.base import LossSums, VocabularyPort
from unimm.models.ports.codes import CodesPort
from unimm.models.ports.pixels import PixelsPort
from unimm.models.ports.text import TextPort
from unimm.models.vision.projectors import ProjectorConfig, build_projector
from unimm.models.vision.tower import VisionConfig, VisionTower
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Kind

TRUNK_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings"),
)
"""What a trunk's config counts, where it does."""

WANTED_ROUNDED = 128
"""What the number of wanted positions is a multiple of: every new number is a new shape to the last layer's products, which
oneDNN compiles anew."""


@dataclass(frozen=True)
class CodesConfig:
    """What the model must know of the image tokenizer: codes an image, codebook size and the width of a code."""

    SIZES: ClassVar[tuple[str, ...]] = ("num_codes", "codebook_size", "code_dim")

    num_codes: int
    codebook_size: int
    code_dim: int = 8
    aligner_depth: int = 2

    def __post_init__(self) -> None:
        # What is not given yet comes from the image tokenizer.
        check_whole(self, 1, "aligner_depth", *(name for name in self.SIZES if getattr(self, name) is not None))


@dataclass(frozen=True)
class UnifiedConfig:
    """Everything that fixes the shape of a unified model.

    trunk: a `transformers` text config as keywords: `model_type` ("llama", "qwen3", ...) and its sizes.
    """

    trunk: dict[str, Any]
    vision: VisionConfig
    codes: CodesConfig
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)

    def trunk_config(self) -> PreTrainedConfig:
        """The trunk's config as `transformers` knows it; what is not given takes the defaults there."""
        sizes = dict(self.trunk)
        if "model_type" not in sizes:
            raise ValueError("The trunk needs a `model_type`, such as 'llama' or 'qwen3'.")
        check_whole({f"trunk.{name}": sizes[name] for name in TRUNK_SIZES if sizes.get(name) is not None}, 1)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the trunk was made for."""
        return self.trunk_config().max_position_embeddings


class UnifiedModel(nn.Module):
    """Everything that is trained together. The image tokenizer is not part of it: codes come from the data."""

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__()
        self.config = config
        trunk_config = config.trunk_config()
        self.width: int = trunk_config.hidden_size
        self.skips_unused_positions = is_llama_shaped(trunk_config)  # where nothing is wanted of it
        self.trunk: Any = LlamaTrunk(trunk_config) if self.skips_unused_positions else _transformers_trunk(trunk_config)
        self._cache_keyword = cache_keyword(self.trunk)
        tower = VisionTower(config.vision)
        codes = config.codes
        self.text = TextPort(trunk_config.vocab_size, self.width, tied=bool(trunk_config.tie_word_embeddings))
        self.pixels = PixelsPort(tower, build_projector(config.projector, config.vision.width, self.width))
        self.codes = CodesPort(codes.codebook_size, codes.code_dim, self.width, codes.aligner_depth)
        std = getattr(trunk_config, "initializer_range", 0.02)
        for embedding in (self.text.embedding, self.text.head):
            nn.init.normal_(embedding.weight, std=std)

    @property
    def vocabulary_ports(self) -> dict[Kind, VocabularyPort]:
        """The ports whose elements can be predicted, by kind."""
        return {Kind.TEXT: self.text, Kind.CODES: self.codes}

    def parts(self) -> dict[str, nn.Module]:
        """The parts that a training stage can name; together they hold every parameter once (tied ones aside)."""
        return {
            "vision": self.pixels.tower,
            "projector": self.pixels.projector,
            "trunk": self.trunk,
            "text_embedding": self.text.embedding,
            "text_head": self.text.head,
            "code_embedding": nn.ModuleList([self.codes.embedding, self.codes.aligner]),
            "code_head": self.codes.head,
        }

    def layers(self) -> list[nn.Module]:
        """The layers of trunk and vision tower: what is repeated, and takes most memory."""
        return [*self.trunk.layers, *self.pixels.tower.transformer.blocks]

    def set_attention(self, way: str) -> None:
        """How the trunk attends from now on, one of `unimm.models.attention.BACKENDS`; what is cached wants "sdpa".

        With "documents", for training on a CPU, the vision tower takes plain products: the backward pass of PyTorch's fused
        kernel takes several times as long as theirs there (recipes/LOG.md).
        """
        if not self.skips_unused_positions:
            register_documents()
        self.trunk.set_attn_implementation(way)
        for module in self.pixels.tower.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", way != "documents")  # noqa: B010 - a plain attribute, whatever the types say

    def compile_layers(self, dynamic: bool | None = None) -> None:
        """Compile the trunk layer by layer: the layers are alike, so one compilation serves them all. The vision tower gains
        nothing (recipes/LOG.md).

        dynamic: at once for rows of any number and length, or never so; None: when they change for the first time.
        """
        for layer in self.trunk.layers:
            layer.compile(dynamic=dynamic)

    def forward(self, batch: Batch) -> dict[Kind, LossSums]:
        """The likelihood of everything that is learned in a batch, as sums and counts a kind."""
        mask = mask_of(self.trunk.config._attn_implementation, batch)
        # Positions that nothing is learned at are not wanted of the last layer (but some, for a round number), nor behind it.
        kinds_N, targets_N, weights_N = (x.flatten() for x in (batch.target_kinds, batch.targets, batch.weights))
        loss_positions_M = _rounded_up(kinds_N != PADDING).nonzero().squeeze(1)
        hidden_MD = self.hidden(self.embed(batch), mask, batch.positions, loss_positions_M=loss_positions_M)
        tallies = {}
        for kind, port in self.vocabulary_ports.items():
            is_kind_M = kinds_N[loss_positions_M] == kind
            chosen_m = loss_positions_M[is_kind_M]
            tallies[kind] = port.loss(hidden_MD[is_kind_M], targets_N[chosen_m], weights_N[chosen_m])
        return tallies

    def embed(self, batch: Batch) -> torch.Tensor:
        """(B, T, D): every port embeds its own elements, also when there are none.

        Raises:
            ValueError: the images do not take as many positions as the batch holds for them.
        """
        kinds_n = batch.kinds.flatten()
        tokens_n = batch.tokens.flatten()
        embeddings_nD = None
        for kind, port in {Kind.PIXELS: self.pixels, **self.vocabulary_ports}.items():
            where_m = (kinds_n == kind).nonzero().squeeze(1)
            values_mD = port.embed_batch(batch.images) if isinstance(port, PixelsPort) else port.embed(tokens_n[where_m])
            if len(values_mD) != len(where_m):
                raise ValueError(
                    f"The batch holds {len(where_m)} positions of {kind.name}, but its images take {len(values_mD)}: "
                    f"image size, patch size and the number of positions a segment claims must agree."
                )
            if embeddings_nD is None:
                embeddings_nD = values_mD.new_zeros(len(kinds_n), self.width)
            embeddings_nD = embeddings_nD.index_put((where_m,), values_mD.to(embeddings_nD.dtype))
        assert embeddings_nD is not None
        return embeddings_nD.view(*batch.kinds.shape, self.width)

    def hidden(
        self,
        embeddings_BTD: torch.Tensor,
        mask: Mask,
        positions_BT: torch.Tensor,
        cache: Cache | None = None,
        loss_positions_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The trunk: (B, T, D) -> (B, T, D), or (M, D) of the positions that are wanted of all rows one after another.

        mask: as the way to attend wants it (`unimm.models.attention`): for "sdpa" (B, 1, T, S) bool, true where a position may
            look; S counts what the cache holds too.
        wanted_M: (M,) long, rising; not with a cache.
        """
        if self.skips_unused_positions:
            if loss_positions_M is not None:
                embeddings_BTD = embeddings_BTD.clone()  # the first layer would be compiled once more for a view
            words = {"attention_mask": mask, "position_ids": positions_BT, "cache": cache, "wanted": loss_positions_M}
            hidden = self.trunk(inputs_embeds=embeddings_BTD, **words)
            return hidden if loss_positions_M is None else hidden[0]
        by_document = self.trunk.config._attn_implementation == "documents"
        hidden = self.trunk(
            inputs_embeds=embeddings_BTD,
            **({"attention_mask": None, "sizes": mask} if by_document else {"attention_mask": mask}),
            position_ids=positions_BT,
            use_cache=cache is not None,
            **{self._cache_keyword: cache},
        ).last_hidden_state
        return hidden if loss_positions_M is None else hidden.flatten(0, 1)[loss_positions_M]


def _transformers_trunk(config: PreTrainedConfig) -> nn.Module:
    """A trunk of `transformers` without its token embedding, which the text port owns."""
    from transformers import AutoModel

    trunk = AutoModel.from_config(config, attn_implementation="sdpa")
    trunk.set_input_embeddings(None)
    return trunk


def _rounded_up(is_wanted_N: torch.Tensor) -> torch.Tensor:
    """The wanted positions, (N,) bool, and the first others, up to a multiple of `WANTED_ROUNDED` if there are so many."""
    missing = -is_wanted_N.sum() % WANTED_ROUNDED
    return is_wanted_N | (~is_wanted_N & ((~is_wanted_N).cumsum(0) <= missing))
