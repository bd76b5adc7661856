"""The unified model: one autoregressive Transformer and a port for each kind of element.

    content --port of its kind--> embeddings (B, T, D) --trunk--> hidden (B, T, D) --port of the next element--> losses, logits

Shapes: B rows, T positions, D trunk width. The trunk is any causal language model of `transformers`, without its own token
embedding and head: those belong to the text port. One of Llama's shape is computed by layers of our own.
Source: Janus (arXiv 2410.13848), Janus-Pro (arXiv 2501.17811).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import Cache

from unimm.batch import PADDING, Batch
from unimm.models.attention import Mask, cache_keyword, mask_of, register_documents
from unimm.models.context_parallel import ContextGroup, SplitMask
from unimm.models.llama import LlamaTrunk, is_llama_shaped
from unimm.models.ports.base import LossSums, Port, PortConfig, PredictedPort, mismatch
from unimm.models.ports.pixels import PixelsPort
from unimm.models.ports.vocabulary import CodesConfig, TextPort, VocabularyPort
from unimm.models.vision.projectors import ProjectorConfig, ProjectorSettings
from unimm.models.vision.tower import VisionConfig, VisionTower
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Kind

TRUNK_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings"),
)
"""What a trunk's config counts, where it does."""

ROUND_LOSS_POSITIONS = 128
"""What the number of positions with a loss is a multiple of: every new number is a new shape to the last layer's products,
which oneDNN compiles anew."""


@dataclass(frozen=True)
class UnifiedConfig:
    """Everything that fixes the shape of a unified model.

    trunk: a `transformers` text config as keywords: `model_type` ("llama", "qwen3", ...) and its sizes.
    codes: None: the model draws nothing.
    projector: one of ours, or of another package.
    ports: of further kinds, each by the name that its module has in the model.
    """

    trunk: dict[str, Any]
    vision: VisionConfig
    codes: CodesConfig | None
    projector: ProjectorSettings = field(default_factory=ProjectorConfig)
    ports: Mapping[str, PortConfig] = field(default_factory=dict)

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
    """Everything that is trained together. The image tokenizer is not part of it: codes come from the data.

    context: the processes that share the positions of rows while it trains; None: each has whole rows.

    Raises ValueError where a port cannot have the name or the kind that it is given.
    """

    text: TextPort
    pixels: PixelsPort
    codes: Any
    """The port of CODES, where the model draws."""

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__()
        self.config = config
        self.context: ContextGroup | None = None
        trunk_config = config.trunk_config()
        self.width: int = trunk_config.hidden_size
        self.skips_unused_positions = is_llama_shaped(trunk_config)  # of the last layer, where no loss is
        self.trunk: Any = LlamaTrunk(trunk_config) if self.skips_unused_positions else _transformers_trunk(trunk_config)
        self._cache_keyword = cache_keyword(self.trunk)
        tower = VisionTower(config.vision)
        self.text = TextPort(trunk_config.vocab_size, self.width, tied=bool(trunk_config.tie_word_embeddings))
        self.pixels = PixelsPort(tower, config.projector.build(config.vision.width, self.width))
        if config.codes is not None:
            self.codes = config.codes.build(self.width)
        std = getattr(trunk_config, "initializer_range", 0.02)
        for embedding in (self.text.embedding, self.text.head):
            nn.init.normal_(embedding.weight, std=std)
        for name, port in config.ports.items():
            self._add_port(name, port.build(self.width))

    def _add_port(self, name: str, port: Port) -> None:
        if hasattr(self, name) or "." in name or name == "image_tokenizer":
            raise ValueError(f"A port cannot be named '{name}' in a model: choose another name below model.ports.")
        if port.kind in self.ports:
            raise ValueError(f"The port '{name}' is of {port.kind.name}, which has a port already: one kind, one port.")
        if taken := set(port.parts()) & set(self.parts()):
            raise ValueError(f"The port '{name}' names a part '{min(taken)}', which the model has already: rename it.")
        self.add_module(name, port)

    @property
    def ports(self) -> dict[Kind, Port]:
        """Every port, by kind."""
        names = ("pixels", "text", "codes", *self.config.ports)
        return {port.kind: port for name in names if (port := getattr(self, name, None)) is not None}

    @property
    def predicted_ports(self) -> dict[Kind, PredictedPort]:
        """The ports whose elements can be learned and filled in, by kind."""
        return {kind: port for kind, port in self.ports.items() if isinstance(port, PredictedPort)}

    @property
    def vocabulary_ports(self) -> dict[Kind, VocabularyPort]:
        """The ports whose elements are ids, by kind."""
        return {kind: port for kind, port in self.ports.items() if isinstance(port, VocabularyPort)}

    @property
    def num_image_positions(self) -> int:
        """Positions that an image which is looked at takes."""
        return self.pixels.num_positions

    def parts(self) -> dict[str, nn.Module]:
        """The parts that a training stage can name; together they hold every parameter once (tied ones aside)."""
        ports = self.ports.values()
        named = {name: part for port in ports if not isinstance(port, PredictedPort) for name, part in port.parts().items()}
        named["trunk"] = self.trunk
        return named | {name: part for port in ports if isinstance(port, PredictedPort) for name, part in port.parts().items()}

    def hidden_parts(self) -> tuple[str, ...]:
        """The parts that are layers inside a network, no embeddings or heads: Muon may move their matrices, and they take
        adapters."""
        return ("trunk", *(name for port in self.ports.values() for name in port.hidden_parts))

    def layers(self) -> list[nn.Module]:
        """The layers of trunk and ports: what is repeated, and takes most memory."""
        return [*self.trunk.layers, *(unit for port in self.ports.values() for unit in port.units())]

    def set_attention(self, backend: str) -> None:
        """Sets the trunk's attention backend, one of `unimm.models.attention.BACKENDS`; a cache needs "sdpa"."""
        if not self.skips_unused_positions:
            register_documents()
        self.trunk.set_attn_implementation(backend)
        for port in self.ports.values():
            port.set_attention(backend)

    def compile_layers(self, dynamic: bool | None = None) -> None:
        """Compile the trunk layer by layer: the layers are alike, so one compilation serves them all. The vision tower gains
        nothing (recipes/LOG.md).

        dynamic: at once for rows of any number and length, or never so; None: when they change for the first time.
        """
        for layer in self.trunk.layers:
            layer.compile(dynamic=dynamic)

    def check(self, batch: Batch) -> None:
        """Raises ValueError where a batch in main memory holds a kind that the model has no port for, or targets that it cannot
        predict."""
        for kinds, ports, what in ((batch.kinds, self.ports, "reads"), (batch.target_kinds, self.predicted_ports, "predicts")):
            for number in kinds.unique().tolist():
                if number != PADDING and number not in ports:
                    known = ", ".join(kind.name for kind in ports)
                    raise ValueError(f"The model {what} {known}, not {Kind.of(number).name}: leave it out, or add its port.")

    def forward(self, batch: Batch) -> dict[Kind, LossSums]:
        """The losses of everything that is learned in a batch, as sums and counts a kind; where a group of processes shares its
        rows, this one's share of them."""
        positions_M, hidden_MD, is_read = self.hidden_of_targets(batch)
        sums = {}
        for kind, port in self.predicted_ports.items():
            where_n, hidden_nD = positions_M[is_read[kind]], hidden_MD[is_read[kind]]
            if self.context is None or isinstance(port, VocabularyPort):
                learned: tuple[Any, ...] = port.targets(batch, where_n)
                sums[kind] = port.loss(hidden_nD, *learned)
            else:  # what is predicted as a whole may lie with several: each computes all of it, for an equal share of the sums
                where_n = port.is_read(batch).flatten().nonzero().squeeze(1)
                hidden_nD = self.context.gather(hidden_nD, where_n, batch.tokens.shape[1])
                of_all = port.loss(hidden_nD, *port.targets(batch, where_n))
                sums[kind] = LossSums(*(one / self.context.count for one in of_all))
        return sums

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """(B, T) float32, or float64 where its weights are: the log-probability of every target, at the position that predicts
        it, whatever its weight; 0 where nothing is learned. It can be differentiated: what objectives compare that ask more
        than a sum. All processes of a group that shares its rows get those of whole rows.

        Raises:
            ValueError: something is learned that is no id of a vocabulary.
        """
        positions_M, hidden_MD, is_read = self.hidden_of_targets(batch)
        values_N = hidden_MD.new_zeros(batch.tokens.numel(), dtype=torch.promote_types(hidden_MD.dtype, torch.float32))
        for kind, port in self.predicted_ports.items():
            where_n = positions_M[is_read[kind]]
            if isinstance(port, VocabularyPort):
                targets_n, _, favoured = port.targets(batch, where_n)
                values_N = values_N.index_put((where_n,), port.log_probs(hidden_MD[is_read[kind]], targets_n, favoured))
            elif len(where_n):
                raise ValueError(f"Elements of {kind.name} have no log-probability here: they are no ids of a vocabulary.")
        if self.context is not None:
            every_N = torch.arange(len(values_N), device=values_N.device)
            own_m = self.context.own_positions(batch.tokens)
            values_N = self.context.gather(values_N[own_m], every_N, batch.tokens.shape[1])
        return values_N.view(batch.tokens.shape)

    def hidden_of_targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[Kind, torch.Tensor]]:
        """The positions (M,) whose hidden states losses read, counted over all rows, and others for a round number; these
        states (M, D); and which of them each kind reads, (M,) bool. Of the last layer nothing else is computed. Where a group
        of processes shares rows, those that this one holds."""
        mask = mask_of(self.trunk.config._attn_implementation, batch)
        is_read_BT = {kind: port.is_read(batch) for kind, port in self.predicted_ports.items()}
        if self.context is not None:
            mask = SplitMask(mask, self.context)
            is_read_BT = {kind: self.context.own(one_BT) for kind, one_BT in is_read_BT.items()}
        is_read_N = {kind: one_BT.flatten() for kind, one_BT in is_read_BT.items()}
        positions_M = _rounded_up(torch.stack(list(is_read_N.values())).any(0)).nonzero().squeeze(1)
        hidden_MD = self.hidden(self.embed(batch), mask, batch.positions, loss_positions_M=positions_M)
        is_read_M = {kind: is_read[positions_M] for kind, is_read in is_read_N.items()}
        if self.context is not None:
            positions_M = self.context.own_positions(batch.tokens)[positions_M]
        return positions_M, hidden_MD, is_read_M

    def embed(self, batch: Batch) -> torch.Tensor:
        """(B, T, D): every port embeds its own elements, also when there are none. Where a group of processes shares rows,
        (B, S, D) of the positions that this one holds.

        Raises:
            ValueError: the content of a kind, such as images, does not take as many positions as the batch holds for it.
        """
        context, kinds_BT = self.context, batch.kinds
        own_n = None if context is None else context.own_positions(kinds_BT)
        kinds_BT = kinds_BT if context is None else context.own(kinds_BT)
        kinds_n = kinds_BT.flatten()
        embeddings_nD = None
        for kind, port in self.ports.items():
            where_m = (kinds_n == kind).nonzero().squeeze(1)
            if context is None or own_n is None:
                values_mD = port.embed(port.content(batch, where_m))
            else:
                values_mD = port.embed_own(batch, own_n[where_m], context)
            if len(values_mD) != len(where_m):
                raise mismatch(kind, len(where_m), len(values_mD))
            if embeddings_nD is None:
                embeddings_nD = values_mD.new_zeros(len(kinds_n), self.width)
            embeddings_nD = embeddings_nD.index_put((where_m,), values_mD.to(embeddings_nD.dtype))
        assert embeddings_nD is not None
        return embeddings_nD.view(*kinds_BT.shape, self.width)

    def hidden(
        self,
        embeddings_BTD: torch.Tensor,
        mask: "Mask | SplitMask",
        positions_BT: torch.Tensor,
        cache: Cache | None = None,
        loss_positions_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The trunk: (B, T, D) -> (B, T, D), or (M, D) of some positions, counted over all rows.

        mask: as the attention backend takes it (`unimm.models.attention`): for "sdpa" (B, 1, T, S) bool, true where a position
            may look; S counts what the cache holds too. A `SplitMask` where embeddings are those that one process of a group
            holds, while positions are of whole rows.
        loss_positions_M: (M,) long, rising; not with a cache.
        """
        if self.skips_unused_positions:
            if loss_positions_M is not None:
                embeddings_BTD = embeddings_BTD.clone()  # the first layer would be compiled once more for a view
            arguments = {"attention_mask": mask, "position_ids": positions_BT, "cache": cache}
            hidden = self.trunk(inputs_embeds=embeddings_BTD, **arguments, loss_positions_M=loss_positions_M)
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


def _rounded_up(is_read_N: torch.Tensor) -> torch.Tensor:
    """The positions that are read, (N,) bool, and the first others, up to a multiple of `ROUND_LOSS_POSITIONS` if there are so
    many."""
    missing = -is_read_N.sum() % ROUND_LOSS_POSITIONS
    return is_read_N | (~is_read_N & ((~is_read_N).cumsum(0) <= missing))
