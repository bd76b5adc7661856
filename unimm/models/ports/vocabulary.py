"""Ports whose elements are ids of a vocabulary, filled in one by one: text, and images written as codes.

    TextPort    the trunk's token embedding and language head
    CodesPort   embedding of VQ codes, aligner and image head, as in Janus (arXiv 2410.13848)

Both heads are learned by cross-entropy in chunks: the logits of a whole batch never exist at once. Logits of n positions over V
ids take n * V floats, several times over: with 100,000 ids more than the rest of a model. Here the logits of a chunk are made,
turned into losses, hits and gradients, and forgotten, so that memory is bounded by the chunk and work stays what it was: three
matrix products. The gradients are ready before the backward pass, which only scales them; the idea is Liger's
(arXiv 2410.10989). PyTorch's own `linear_cross_entropy` does not tell which targets were ranked first.

Shapes: n elements or positions, m positions of a chunk, D trunk width, V vocabulary (text tokens or codes).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from unimm.batch import Batch
from unimm.models.context_parallel import ContextGroup
from unimm.models.ports.base import LossSums, PredictedPort
from unimm.models.vision.projectors import MLP
from unimm.runtime.number_checks import check_whole
from unimm.sequence import BLANK, Kind, Segment

T = TypeVar("T")

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits of a chunk, at most: 128 MiB in float32. 512 on a GPU: every chunk reads and writes the whole gradient, which there,
by count of bytes and operations, would take as long as its products."""


class VocabularyPort(PredictedPort):
    """A port whose elements are ids of a vocabulary: what text and codes have in common. `head` ends in a linear layer."""

    reads: ClassVar[Literal["previous", "own"]] = "previous"
    vocabulary_size: int
    head: Any

    def content(self, batch: Batch, where_n: Tensor) -> Tensor:
        """ids (n,)."""
        return batch.tokens.flatten()[where_n]

    def embed(self, content: Tensor) -> Tensor:
        """ids (n,) -> embeddings (n, D)."""
        raise NotImplementedError

    def embed_own(self, batch: Batch, own_n: Tensor, context: ContextGroup) -> Tensor:
        return self.embed(self.content(batch, own_n))

    def check(self, segment: Segment) -> None:
        ids, most = segment.content_ids, self.vocabulary_size
        strange = ids[((ids < 0) | (ids >= most)) & (ids != BLANK)]  # closed segments hold no blanks
        if len(strange):
            raise ValueError(f"The model has no element {strange[0]} of {self.kind.name}: they go from 0 to {most - 1}.")
        if segment.suppressed:
            self._check_suppressed(set(segment.suppressed))

    def _check_suppressed(self, ids: set[int]) -> None:
        most = self.vocabulary_size
        if strange := sorted(one for one in ids if not 0 <= one < most):
            raise ValueError(f"Element {strange[0]} of {self.kind.name} is suppressed, but they go from 0 to {most - 1}.")
        if len(ids) == most:
            raise ValueError(f"All elements of {self.kind.name} are suppressed: leave one that can be chosen.")

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V)."""
        return self.head(hidden)

    def targets(self, batch: Batch, read_n: Tensor) -> tuple[Tensor, Tensor, "Favoured"]:
        """The ids that follow these positions, their weights, and what they may well be."""
        return batch.targets.flatten()[read_n], batch.weights.flatten()[read_n], Favoured.of(batch, read_n)

    def loss(self, hidden_nD: Tensor, targets: Tensor, weights_n: Tensor, favoured: "Favoured | None" = None) -> LossSums:
        """The likelihood of the targets, ids (n,).

        Raises:
            ValueError: an adapter is attached to the head; its share would be lost here.
        """
        hidden_nD, last = self.before_last(hidden_nD)
        sums = linear_cross_entropy(hidden_nD, last.weight, last.bias, targets, weights_n, favoured)
        return LossSums(sums.loss, sums.correct, weights_n.sum())

    def log_probs(self, hidden_nD: Tensor, targets_n: Tensor, favoured: "Favoured | None" = None) -> Tensor:
        """(n,) float32: the log-probability of each target, an id. Raises ValueError as `loss` does."""
        hidden_nD, last = self.before_last(hidden_nD)
        return linear_log_probs(hidden_nD, last.weight, last.bias, targets_n, favoured)

    def before_last(self, hidden_nD: Tensor) -> tuple[Tensor, nn.Linear]:
        """What goes into the head's last layer, and that layer."""
        *first, last = self.head if isinstance(self.head, nn.Sequential) else [self.head]
        for module in first:
            hidden_nD = module(hidden_nD)
        if not isinstance(last, nn.Linear):
            raise ValueError(
                f"The last layer of a head is a {type(last).__name__}, not a plain linear layer: heads take no adapter."
            )
        return hidden_nD, last

    def sample(self, hidden: Tensor, choose: Callable[[Tensor], T]) -> T:
        """One step of sampling: hidden (n, D) -> what `choose` makes of logits (n, V)."""
        return choose(self.logits(hidden))

    def head_path(self) -> list[nn.Module]:
        """The head."""
        return [self.head]


class TextPort(VocabularyPort):
    """Text tokens in and out: the trunk's token embedding and language head. tied: both are one matrix."""

    kind = Kind.TEXT

    def __init__(self, vocabulary_size: int, width: int, tied: bool = False) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.head = nn.Linear(width, vocabulary_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def embed(self, content: Tensor) -> Tensor:
        return self.embedding(content)

    def parts(self) -> dict[str, nn.Module]:
        return {"text_embedding": self.embedding, "text_head": self.head}

    def path(self) -> list[nn.Module]:
        return [self.embedding]


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

    def build(self, width: int) -> "CodesPort":
        """The port, for a trunk of this width."""
        return CodesPort(self.codebook_size, self.code_dim, width, self.aligner_depth)


class CodesPort(VocabularyPort):
    """Images written: code embedding, aligner and image head.

    The embedding is the model's own, not the image tokenizer's codebook (as in Janus).
    """

    kind = Kind.CODES

    def __init__(self, codebook_size: int, code_dim: int, width: int, aligner_depth: int = 2) -> None:
        super().__init__()
        self.vocabulary_size = codebook_size
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.aligner = MLP(code_dim, width, aligner_depth)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, codebook_size))

    def embed(self, content: Tensor) -> Tensor:
        return self.aligner(self.embedding(content))

    def parts(self) -> dict[str, nn.Module]:
        return {"code_embedding": nn.ModuleList([self.embedding, self.aligner]), "code_head": self.head}

    def path(self) -> list[nn.Module]:
        return [nn.ModuleList([self.embedding, self.aligner])]


class Favoured(NamedTuple):
    """An id for each of n positions that its target may well be, (n,) long, and what is added to the logit of that id, (n,)
    float; 0 where there is none."""

    ids_n: Tensor
    biases_n: Tensor

    @classmethod
    def of(cls, batch: Batch, read_n: Tensor) -> "Favoured":
        """Of these positions of a batch, (n,) long, counted over all rows."""
        return cls(batch.expected.flatten()[read_n], batch.biases.flatten()[read_n])

    def add_to(self, logits_nV: Tensor) -> Tensor:
        """Logits with these biases."""
        return logits_nV.scatter_add(1, self.ids_n[:, None], self.biases_n[:, None].to(logits_nV.dtype))


class Sums(NamedTuple):
    """Weighted sums over positions, float scalars: negative log-likelihoods in nats, and targets ranked first."""

    loss: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden_nD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_n: Tensor,
    weights_n: Tensor,
    favoured: Favoured | None = None,
    chunk_logits: int | None = None,
) -> Sums:
    """Cross-entropy of the logits hidden @ weight.T + bias; products in autocast's dtype, the rest in float32.

    The loss can be differentiated once, with respect to hidden, weight and bias. No positions give zeros, and zero gradients.

    favoured: what is added to the logits.

    chunk_logits: of a chunk at most; None: `CHUNK_LOGITS` of the device.
    """
    chunk_logits = chunk_logits or CHUNK_LOGITS.get(hidden_nD.device.type, CHUNK_LOGITS["cpu"])
    is_cast = torch.is_autocast_enabled(hidden_nD.device.type)
    dtype = torch.get_autocast_dtype(hidden_nD.device.type) if is_cast else hidden_nD.dtype
    with torch.autocast(hidden_nD.device.type, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(
            hidden_nD, weight_VD, bias_V, targets_n, weights_n, favoured, _Computing(dtype, chunk_logits)
        )
    return Sums(loss, correct)


def linear_log_probs(
    hidden_nD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_n: Tensor,
    favoured: Favoured | None = None,
    chunk_logits: int | None = None,
) -> Tensor:
    """(n,) float32, or float64 where the weights are: the log-probability of each target under the logits
    hidden @ weight.T + bias; arguments as `linear_cross_entropy` has them. The logits of a chunk are computed again for the
    backward pass, since what multiplies each value there is not known before."""
    most = chunk_logits or CHUNK_LOGITS.get(hidden_nD.device.type, CHUNK_LOGITS["cpu"])

    def of_chunk(hidden_mD: Tensor, targets_m: Tensor, *favoured: Tensor) -> Tensor:
        logits_mV = F.linear(hidden_mD, weight_VD, bias_V)
        logits_mV = logits_mV.to(torch.promote_types(logits_mV.dtype, torch.float32))
        if favoured:
            logits_mV = Favoured(*favoured).add_to(logits_mV)
        return logits_mV.gather(1, targets_m[:, None])[:, 0] - logits_mV.logsumexp(-1)

    size = max(1, most // len(weight_VD))
    chunks = list(zip(*(one.split(size) for one in (hidden_nD, targets_n, *(favoured or ()))), strict=True))
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])


class _Computing(NamedTuple):
    """In which dtype products are made, and how many logits at once."""

    dtype: torch.dtype
    chunk_logits: int


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_n: Tensor,
        weights_n: Tensor,
        favoured: Favoured | None,
        computing: "_Computing",
    ) -> tuple[Tensor, Tensor]:
        needed, dtype = ctx.needs_input_grad[:3], computing.dtype
        grads = _Gradients(hidden_nD, weight_VD, bias_V, needed)
        head_VD = weight_VD.to(dtype)
        loss = torch.zeros((), device=hidden_nD.device)
        correct = torch.zeros((), device=hidden_nD.device)
        size = max(1, computing.chunk_logits // len(weight_VD))
        for start in range(0, len(hidden_nD), size):
            chunk = slice(start, start + size)
            hidden_mD, targets_m1, weights_m = hidden_nD[chunk].to(dtype), targets_n[chunk, None], weights_n[chunk].float()
            logits_mV = (hidden_mD @ head_VD.T).float()
            if bias_V is not None:
                logits_mV += bias_V
            if favoured is not None:
                logits_mV = Favoured(favoured.ids_n[chunk], favoured.biases_n[chunk]).add_to(logits_mV)
            correct += ((logits_mV.argmax(-1) == targets_m1[:, 0]) * weights_m).sum()
            total_m1 = logits_mV.logsumexp(-1, keepdim=True)
            loss += ((total_m1 - logits_mV.gather(1, targets_m1))[:, 0] * weights_m).sum()
            if any(needed):
                slope_mV = logits_mV.sub_(total_m1).exp_()  # the probabilities, in place of the logits
                slope_mV.scatter_add_(1, targets_m1, slope_mV.new_full(targets_m1.shape, -1.0))
                grads.add(chunk, slope_mV.mul_(weights_m[:, None]), hidden_mD, head_VD)
        ctx.grads = grads
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("This loss was differentiated once already, and its gradients are gone: compute it again.")
        return (*grads.scaled(grad_outputs[0]), None, None, None, None)


class _Gradients:
    """Sums of the gradients of a head's input, weight and bias, for those that are needed."""

    def __init__(self, hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.hidden_nD = torch.zeros_like(hidden_nD) if needed[0] else None
        # In float32 whatever the weights are: thousands of chunks are added up.
        self.weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needed[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needed[2] and bias_V is not None else None
        self.dtypes = (hidden_nD.dtype, weight_VD.dtype, weight_VD.dtype if bias_V is None else bias_V.dtype)

    def add(self, chunk: slice, slope_mV: Tensor, hidden_mD: Tensor, head_VD: Tensor) -> None:
        """What one chunk adds, given the slope of its logits."""
        if self.bias_V is not None:
            self.bias_V += slope_mV.sum(0)
        slope_mV = slope_mV.to(head_VD.dtype)
        if self.hidden_nD is not None:
            self.hidden_nD[chunk] = slope_mV @ head_VD
        if self.weight_VD is None:
            return
        if slope_mV.dtype == torch.float32:
            self.weight_VD.addmm_(slope_mV.T, hidden_mD)
            return
        # A product of another dtype is a matrix of its own before it is added: by parts of the vocabulary, it stays small.
        for sums_vD, slope_mv in zip(self.weight_VD.split(2**14), slope_mV.split(2**14, dim=1), strict=True):
            sums_vD += slope_mv.T @ hidden_mD

    def scaled(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients of a loss that is multiplied by a factor; they can be asked for once."""
        own = (self.hidden_nD, self.weight_VD, self.bias_V)
        return [None if grad is None else grad.mul_(factor).to(dtype) for grad, dtype in zip(own, self.dtypes, strict=True)]
