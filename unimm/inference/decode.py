"""The decode loop: fills open segments, text and codes alike, many requests at once.

Every request is one row, or two where guidance asks for the null prompt as well. Rows hold prompts of different lengths:
they are prefilled together, right-padded, and then step together, each at its own position; a row leaves when its segment
is full or a stop id came. The loop knows ids and tensors, no strings and no images.

Shapes: Q requests, R rows (conditional rows of all requests first, then the unconditional rows), T positions, D trunk width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from unimm.batch import Batch, collate
from unimm.inference.cache import RowCache
from unimm.inference.sampling import Sampler, Sampling, guide
from unimm.models.unified import UnifiedModel
from unimm.sequence import BLANK, Kind, Segment, Sequence


@dataclass(frozen=True)
class Request:
    """An open sequence and how to fill it. guidance_scale: 1.0 is off and costs nothing."""

    sequence: Sequence
    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: float = 1.0

    @property
    def blank(self) -> Segment:
        """The open segment."""
        return self.sequence.segments[-1]


class Decoder:
    """Fills the open segments of requests with a unified model.

    pad_id: the token of the null prompt.
    """

    def __init__(self, model: UnifiedModel, pad_id: int) -> None:
        self.model = model
        self.pad_id = pad_id

    @torch.inference_mode()
    def fill(self, requests: list[Request]) -> list[list[int]]:
        """The ids that fill each request's open segment, in the requests' order; a stop id that ended one is included."""
        filled: list[list[int]] = [[] for _ in requests]
        for new in self.steps(requests):
            for index, token in new.items():
                filled[index].append(token)
        return filled

    def steps(self, requests: list[Request]) -> Iterator[dict[int, int]]:
        """The same, step by step: each step gives {request: its next id} for all requests that are not finished."""
        for request in requests:
            self._check(request)  # now, not when the first step is asked for
        return self._steps(requests) if requests else iter(())

    def _steps(self, requests: list[Request]) -> Iterator[dict[int, int]]:
        with torch.inference_mode():
            rows = _Rows(requests, self.model, self.pad_id)
            hidden_RD = rows.prefill()
        while True:
            with torch.inference_mode():
                ids = rows.choose(hidden_RD)
                new = rows.accept(ids)
            yield new
            if rows.finished:
                return
            with torch.inference_mode():
                hidden_RD = rows.advance(rows.ids)

    def _check(self, request: Request) -> None:
        if not request.sequence.is_open:
            raise ValueError("This sequence has no open segment: there is nothing to fill.")
        if len(request.sequence.segments) == 1:
            raise ValueError("Something must be given before what is to be filled: begin with the begin-of-sentence id.")
        if not 0 <= request.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be 0 or positive, not {request.guidance_scale}.")
        length, most = request.sequence.length, self.model.config.max_positions
        if length > most:
            raise ValueError(
                f"The request takes {length} positions (prompt, images and what is to be filled), but the model was made "
                f"for {most}: shorten the prompt, or ask for fewer images or new tokens."
            )


class _Rows:
    """The state of one batch of requests while it is decoded."""

    def __init__(self, requests: list[Request], model: UnifiedModel, pad_id: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        guided = [index for index, request in enumerate(requests) if request.guidance_scale != 1.0]
        null = [requests[index].sequence.unconditioned(pad_id) for index in guided]
        self.sequences = [request.sequence for request in requests] + null
        self.num_slots = max(sequence.length for sequence in self.sequences)
        self.cache = RowCache(len(model.trunk.layers), self.num_slots)
        self.requests = requests
        self.active = list(range(len(requests)))  # the request of each conditional row
        self.guided = guided  # the request of each unconditional row
        self.lengths_R = torch.tensor([sequence.given.length for sequence in self.sequences], device=self.device)
        self.num_filled = [0] * len(requests)
        self.ids = torch.zeros(0, dtype=torch.long)
        self._regroup()

    @property
    def finished(self) -> bool:
        return not self.active

    def prefill(self) -> torch.Tensor:
        """All given segments at once -> hidden state of each row's last given position (R, D)."""
        batch: Batch = collate([[sequence] for sequence in self.sequences]).to(self.device)
        rows, num_positions = batch.tokens.shape
        self.cache.prepare(torch.arange(num_positions, device=self.device).expand(rows, -1), num_positions)
        hidden_RTD = self.model.hidden(self.model.embed(batch), batch.attention_mask(), batch.positions, self.cache)
        return hidden_RTD[torch.arange(rows, device=self.device), self.lengths_R - 1]

    def choose(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """The next id of every active request (Q,)."""
        ids_Q = torch.zeros(len(self.active), dtype=torch.long, device=self.device)
        for kind, group in self.groups.items():
            port = self.model.vocabulary_ports[kind]

            def choose(logits_RV: torch.Tensor, group: _Group = group) -> torch.Tensor:
                conditional = logits_RV[: len(group.rows)]
                if len(group.null_rows):
                    guided = guide(conditional[group.guided], logits_RV[len(group.rows) :], group.scales)
                    conditional = conditional.float().index_put((group.guided,), guided)
                return group.sampler(conditional, group.steps)

            ids_Q[group.rows] = port.sample(hidden_RD[torch.cat([group.rows, group.null_rows])], choose)
            group.steps += 1
        return self._force_known(ids_Q)

    def accept(self, ids_Q: torch.Tensor) -> dict[int, int]:
        """Take the chosen ids; rows that are now finished leave. Returns {request: id}."""
        new = dict(zip(self.active, ids_Q.tolist(), strict=True))
        kept_rows, kept = [], []
        for row, (index, token) in enumerate(new.items()):
            self.num_filled[index] += 1
            blank = self.requests[index].blank
            assert blank.limit is not None
            if self.num_filled[index] < blank.limit and token not in blank.stop:
                kept_rows.append(row)
                kept.append(index)
        still = set(kept)
        null_rows = [len(self.active) + place for place, index in enumerate(self.guided) if index in still]
        place_of = {index: place for place, index in enumerate(kept)}
        if len(kept) < len(self.active):
            self._keep(kept_rows + null_rows, kept)
        ids = ids_Q[kept_rows]
        self.ids = torch.cat([ids, ids[[place_of[index] for index in self.guided]]]) if kept else ids
        return new

    def advance(self, ids_R: torch.Tensor) -> torch.Tensor:
        """One more element a row -> hidden states (R, D)."""
        embeddings_RD = torch.zeros(len(ids_R), self.model.width, device=self.device)
        for kind, group in self.groups.items():
            rows = torch.cat([group.rows, group.null_rows])
            values = self.model.vocabulary_ports[kind].embed(ids_R[rows])
            embeddings_RD = embeddings_RD.to(values.dtype).index_put((rows,), values)
        used = int(self.lengths_R.max()) + 1
        slots_R1 = self.lengths_R[:, None]
        self.cache.prepare(slots_R1, used)
        mask_R11S = (torch.arange(used, device=self.device) <= slots_R1)[:, None, None]
        hidden_R1D = self.model.hidden(embeddings_RD[:, None], mask_R11S, slots_R1, self.cache)
        self.lengths_R = self.lengths_R + 1
        return hidden_R1D[:, 0]

    def _force_known(self, ids_Q: torch.Tensor) -> torch.Tensor:
        """Elements of an open segment that were given are not chosen."""
        for row, index in enumerate(self.active):
            known, place = self.requests[index].blank.ids, self.num_filled[index]
            if place < len(known) and known[place] != BLANK:
                ids_Q[row] = known[place]
        return ids_Q

    def _keep(self, rows: list[int], active: list[int]) -> None:
        chosen = torch.tensor(rows, dtype=torch.long, device=self.device)
        still = set(active)
        self.active = active
        self.guided = [index for index in self.guided if index in still]
        self.lengths_R = self.lengths_R[chosen]
        if active:
            self.cache.keep(chosen)
        self._regroup()

    def _regroup(self) -> None:
        """Rows by the kind they fill: what `choose` needs of each kind, as tensors."""
        self.groups: dict[Kind, _Group] = {}
        for kind in self.model.vocabulary_ports:
            rows = [row for row, index in enumerate(self.active) if self.requests[index].blank.kind == kind]
            if rows:
                self.groups[kind] = _Group.of(rows, self)


@dataclass
class _Group:
    """The rows that fill one kind. rows: conditional; null_rows: unconditional; guided: which of `rows` have one."""

    rows: torch.Tensor
    null_rows: torch.Tensor
    guided: torch.Tensor
    scales: torch.Tensor
    steps: torch.Tensor
    sampler: Sampler

    @classmethod
    def of(cls, rows: list[int], state: _Rows) -> "_Group":
        device = state.device
        requests = [state.active[row] for row in rows]
        place_of = {index: place for place, index in enumerate(state.guided)}
        guided = [place for place, index in enumerate(requests) if index in place_of]
        null_rows = [len(state.active) + place_of[requests[place]] for place in guided]
        scales = [state.requests[requests[place]].guidance_scale for place in guided]
        as_long = {"dtype": torch.long, "device": device}
        return cls(
            rows=torch.tensor(rows, **as_long),
            null_rows=torch.tensor(null_rows, **as_long),
            guided=torch.tensor(guided, **as_long),
            scales=torch.tensor(scales, device=device),
            steps=torch.tensor([state.num_filled[index] for index in requests], **as_long),
            sampler=Sampler([state.requests[index].sampling for index in requests], device),
        )
