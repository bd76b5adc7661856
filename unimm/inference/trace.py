"""Look inside: what a model computed for one whole sequence, position by position, layer by layer, head by head.

    trace = engine.trace(sequence, hidden=True, attention=True, logits=True)
    trace.looked_at(range(40, 43), trace.images[0].positions)     how much these elements looked at each patch of the image
    trace.lens(Kind.CODES, 3)                                     what would have been chosen before layer 3 (the logit lens)

An element is chosen by what stands at the position before it. So "where it looked" is the attention of that position.
Plots of all this are in `trace_plots`.

Shapes: L layers, H heads, T positions, D trunk width, n elements of a kind, V their vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unimm.batch import collate
from unimm.data.grids import Grid
from unimm.data.records import ImageLike
from unimm.data.template import Turn
from unimm.data.text import TextTokenizer
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling, guide
from unimm.inference.editing import EditingCalls
from unimm.inference.input_validation import check_elements, check_text
from unimm.models.inspection import final_norm, run_layers
from unimm.runtime.number_checks import real_number, whole_number
from unimm.sequence import Kind, Segment, Sequence, Span


@dataclass(frozen=True)
class Patches:
    """An image inside a sequence: one that is looked at, or codes. It lies in positions [start, start + height * width).

    height, width: of its patches, in reading order; 1 and their number where they are no square.
    """

    segment: Segment
    start: int
    height: int
    width: int

    @property
    def positions(self) -> range:
        """Of its patches."""
        return range(self.start, self.start + self.height * self.width)


@dataclass(frozen=True)
class Word:
    """A word, and the positions of its tokens."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """One pass of a model over a sequence, on the CPU; what was not asked for is None.

    tokens: (T,) what stands at each position: text, "<pixels 0,3>" of the patch at row 0, column 3, "<code 17>".
    hidden: (L + 1, T, D) float32: what enters each layer, and last what the heads read (behind the final norm).
    attention: (L, H, T, T) float32: how much a position (third axis) looks at others (fourth); each sums to 1. H is 1 where
        the mean over heads was asked for.
    grid: of a drawing's codes, where it is known; else images are squares where they can be.
    logits: by kind (n, V) float32: of each element of the kind but the first position's, before it was there, in order
        (`predicted`).
    """

    sequence: Sequence
    tokens: tuple[str, ...]
    is_control: tuple[bool, ...]
    hidden: Tensor | None
    attention: Tensor | None
    logits: dict[Kind, Tensor] | None
    read: Callable[[Kind, Tensor, bool], Tensor]
    """A kind, states (n, D) and whether they are behind the final norm -> logits (n, V) of the kind's head."""
    grid: Grid | None = None

    @property
    def spans(self) -> list[Span]:
        """Every segment with the positions it takes."""
        return self.sequence.spans()

    @cached_property
    def images(self) -> tuple[Patches, ...]:
        """Every image that is looked at, and every run of codes."""
        return tuple(_patches(span, self.grid) for span in self.spans if span.segment.kind in (Kind.PIXELS, Kind.CODES))

    def predicted(self, kind: Kind) -> list[int]:
        """The positions of a kind's elements that are predicted: all but the first of the sequence."""
        return [place for span in self.spans if span.segment.kind == kind for place in range(span.start, span.stop) if place]

    def words(self, within: Iterable[int] | None = None) -> list[Word]:
        """The words of the text at these positions, without special tokens; default: of the last segment, if it is text.

        A word begins where there was white space, and every Chinese character is one.
        """
        if within is None:
            last = self.spans[-1]
            within = range(last.start, last.stop) if last.segment.kind == Kind.TEXT else ()
        words: list[Word] = []
        joins, parts = False, []  # parts: of a character that is not whole yet
        for place in within:
            text = self.tokens[place]
            if self.is_control[place] or (text and not text.strip()):
                joins, parts = False, []
            elif not text:
                parts.append(place)
            else:
                is_new = not joins or text[0].isspace() or _is_chinese(text[0]) or _is_chinese(words[-1].text[-1])
                before = Word("", ()) if is_new else words.pop()
                words.append(Word((before.text + text).strip(), (*before.positions, *parts, place)))
                joins, parts = not text[-1].isspace(), []
        return words

    def words_of(self, text: str) -> list[Word]:
        """The words of a text that stands in the sequence, such as the prompt; the last time that it does.

        Raises:
            ValueError: it does not.
        """
        places = [place for span in self.spans if span.segment.kind == Kind.TEXT for place in range(span.start, span.stop)]
        places = [place for place in places if not self.is_control[place]]
        whole = "".join(self.tokens[place] for place in places)
        begin = whole.rfind(text.strip())
        if begin < 0:
            raise ValueError("This text does not stand in the sequence as it is: give it as it was asked.")
        end, inside = begin + len(text.strip()), []
        first = 0
        for place in places:
            last = first + len(self.tokens[place])
            inside += [place] if last > begin and first < end else []
            first = last
        return self.words(inside)

    def looked_at(self, elements: Iterable[int], onto: Iterable[int], layers: slice | None = None) -> Tensor:
        """How much the choice of elements looked at positions: (n, m) for n positions of elements and m positions, from 0 to 1.

        layers: which layers' mean to take; default: of all. Heads are always averaged.

        Raises:
            ValueError: the trace has no attention, or an element is the first of the sequence, which nothing chooses.
        """
        if self.attention is None:
            raise ValueError("This trace has no attention: make it with attention=True.")
        before = [place - 1 for place in elements]
        if any(place < 0 for place in before):
            raise ValueError("The first element of a sequence is given: it looked at nothing.")
        chosen = self.attention if layers is None else self.attention[layers]
        return chosen[:, :, before].mean((0, 1))[:, list(onto)]

    def lens(self, kind: Kind, layer: int) -> Tensor:
        """The logit lens: logits (n, V) of a kind's elements, read from what enters a layer (0, ..., L - 1) as if there were no
        more of them; those of L, behind all layers, are the model's.

        Raises:
            ValueError: the trace has no hidden states, there is no such layer, or the kind has no logits.
        """
        if self.hidden is None:
            raise ValueError("This trace has no hidden states: make it with hidden=True.")
        if not 0 <= layer < len(self.hidden):
            raise ValueError(f"Layers go from 0 to {len(self.hidden) - 1}, behind the last one, and {layer} is none.")
        before = [place - 1 for place in self.predicted(kind)]
        return self.read(kind, self.hidden[layer][before], layer == len(self.hidden) - 1)


@dataclass(frozen=True, eq=False)
class GuidanceTrace:
    """Logits (n, V) of the codes of a drawing, which stand at `positions`: with the prompt, without it, and guided,
    l = u + scale (c - u)."""

    sequence: Sequence
    scale: float
    positions: list[int]
    conditional: Tensor
    unconditional: Tensor

    @property
    def guided(self) -> Tensor:
        """What is sampled from, before temperature."""
        return guide(self.conditional, self.unconditional, torch.full((len(self.conditional),), self.scale))


_KEEP: dict[bool | str, Callable[[Tensor], Tensor] | None] = {
    False: None,
    True: Tensor.cpu,
    "mean": lambda weights_HTT: weights_HTT.mean(0, keepdim=True).cpu(),
}
"""What is kept of the attention of each layer, by what is asked for."""


class TraceCalls(EditingCalls):
    """The engine's calls that look inside."""

    @torch.inference_mode()
    def trace(
        self,
        sequence: Sequence,
        hidden: bool = False,
        attention: bool | str = False,
        logits: bool = False,
        grid: Grid | None = None,
    ) -> Trace:
        """What the model computes for a closed sequence, such as `fill` gives, in one pass. Requests wait meanwhile.

        Args:
            hidden: keep what enters each layer, layers * positions * width numbers.
            attention: keep how much each position looks at each other one, layers * heads * positions^2 numbers, in GB for a
                large model; "mean": of each layer the mean over its heads.
            logits: keep what each element was chosen from, before guidance and temperature.
            grid: rows and columns of the codes, where they are no square.

        Raises:
            ValueError: the sequence is open, longer than the model was made for, or holds what the model does not know.
        """
        if sequence.is_open:
            raise ValueError("An open sequence has nothing to trace yet: fill it first, with engine.fill.")
        if attention not in _KEEP:
            raise ValueError(f'attention is True, False or "mean", not {attention!r}.')
        if sequence.length > self.model.config.max_positions:
            most = self.model.config.max_positions
            raise ValueError(f"The sequence takes {sequence.length} positions, and the model was made for {most}: shorten it.")
        sequence = sequence.opened()
        check_elements(sequence, self.model)
        batch = collate([[sequence]]).to(self.device)
        with self.decoder.between_steps():
            states, kept = run_layers(self.model, batch, _KEEP[attention])
        tokens, is_control = self._tokens(sequence)
        bare = Trace(sequence, tokens, is_control, None, torch.stack(kept) if kept else None, None, self._read, grid)
        kinds = {segment.kind for segment in sequence.segments} & {*self.model.vocabulary_ports}
        chosen = {kind: self._read(kind, states[-1][[place - 1 for place in bare.predicted(kind)]], True) for kind in kinds}
        return replace(
            bare,
            hidden=torch.stack([state.float().cpu() for state in states]) if hidden else None,
            logits=chosen if logits else None,
        )

    def trace_answer(
        self, image: ImageLike, question: str, max_new_tokens: int = 128, temperature: float = 0.0, **sampling: Any
    ) -> Trace:
        """Ask about an image as `answer` does, and trace question and answer, with attention (the mean over heads).

        The words of the answer are `trace.words()`, the image's patches `trace.images[0]`; where a large picture is seen in
        tiles, those of tile n `trace.images[n]`, and of the thumbnail the last.
        """
        check_text(question, "question")
        asked = [Turn("user", (self.template.look(image), question))]
        opened = self.template.chat(asked, whole_number("max_new_tokens", max_new_tokens, 1)).opened()
        (ids,) = self.decoder.fill([Request(opened, Sampling(temperature, **sampling))])
        return self.trace(opened.fill(ids), attention="mean")

    def trace_drawing(self, prompt: str, codes: Tensor, size: Any = None) -> Trace:
        """Trace a drawing, codes (num_codes,) as `generate_codes` gives them, with hidden states and attention (the mean over
        heads). The words of the prompt are `trace.words_of(prompt)`, the drawing's patches `trace.images[0]`. size: of
        `generate_images`, as the drawing was asked for."""
        grid = self.grid_of(size)
        return self.trace(self._drawn(prompt, codes, grid), hidden=True, attention="mean", grid=grid)

    def trace_guidance(self, prompt: str, codes: Tensor, guidance_scale: float | None = None) -> GuidanceTrace:
        """What each code of a drawing was chosen from: logits with the prompt, without it, and guided.

        guidance_scale: default: the model's own.
        """
        scale = self.drawing.guidance_scale if guidance_scale is None else real_number("guidance_scale", guidance_scale)
        sequence = self._drawn(prompt, codes, self.coder.grid)
        with_prompt = self.trace(sequence, logits=True)
        without = self.trace(sequence.unconditioned(self.tokenizer.special.pad), logits=True)
        assert with_prompt.logits is not None and without.logits is not None
        pair = (with_prompt.logits[Kind.CODES], without.logits[Kind.CODES])
        return GuidanceTrace(sequence, scale, with_prompt.predicted(Kind.CODES), *pair)

    def _drawn(self, prompt: str, codes: Tensor, grid: Grid) -> Sequence:
        check_text(prompt, "prompt")
        ids = torch.as_tensor(codes)
        if ids.shape != (grid.num_codes,):
            raise ValueError(f"A drawing has codes ({grid.num_codes},), not {tuple(ids.shape)}: give one image's.")
        named = None if grid == self.coder.grid else grid
        return self.template.draw(prompt, num_codes=len(ids), grid=named).fill(ids.long().cpu().numpy())

    @torch.inference_mode()
    def _read(self, kind: Kind, states_nD: Tensor, is_normed: bool) -> Tensor:
        if kind not in self.model.vocabulary_ports:
            raise ValueError(f"{kind.name} has no logits.")
        weight = next(self.model.trunk.parameters())
        states_nD = states_nD.to(weight.device, weight.dtype)
        if not is_normed:
            states_nD = final_norm(self.model.trunk)(states_nD)
        return self.model.vocabulary_ports[kind].logits(states_nD).float().cpu()

    def _tokens(self, sequence: Sequence) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        tokens: list[str] = []
        is_control: list[bool] = []
        for span in sequence.spans():
            segment = span.segment
            if segment.kind == Kind.TEXT:
                tokens += _texts(self.tokenizer, segment.ids)
                is_control += [one in self.tokenizer.control_ids for one in segment.ids]
                continue
            if segment.kind == Kind.CODES:
                tokens += [f"<code {one}>" for one in segment.ids]
            else:
                patches = _patches(span)
                name = segment.kind.name.lower()
                tokens += [f"<{name} {place // patches.width},{place % patches.width}>" for place in range(segment.length)]
            is_control += [True] * segment.length
        return tuple(tokens), tuple(is_control)


def _texts(tokenizer: TextTokenizer, ids: tuple[int, ...]) -> list[str]:
    """What each token adds to the text; nothing where a character is not whole yet, which comes with its last token."""
    texts, begun = [], b""
    for one in ids:
        begun += tokenizer.token_bytes(one)
        try:
            texts.append(begun.decode())
            begun = b""
        except UnicodeDecodeError as error:
            is_cut = error.end == len(begun) and len(begun) - error.start < 4
            texts.append(begun[: error.start].decode() if is_cut else begun.decode(errors="replace"))
            begun = begun[error.start :] if is_cut else b""
    return texts


def _patches(span: Span, grid: Grid | None = None) -> Patches:
    length = span.stop - span.start
    if grid is not None and span.segment.kind == Kind.CODES and grid.num_codes == length:
        return Patches(span.segment, span.start, *grid)
    side = math.isqrt(length)
    return Patches(span.segment, span.start, *((side, side) if side * side == length else (1, length)))


def _is_chinese(letter: str) -> bool:
    return "\u3400" <= letter <= "\u9fff" or letter in "，。？！、；："
