"""Conversations in which the assistant draws: whether it draws where it is asked to, draws that, and says what is true of it.

    interleaved                    requests, questions, stories and checks of the interleaved world, turn by turn
    interleaved?split=held_out     with pairs of colour and form that training never shows

Every turn is answered after the model's own earlier turns. Three shares: of turns with the right kinds of parts in the right
order (a picture where one is asked for, words where these are); of pictures that show all that was asked for so far, and
nothing else; and of words that are true of the model's own pictures, as the checker reads these: answers, what was said before
it was drawn, and whether a drawing that was checked is what was asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.interleaved import InterleavedRecord, InterleavedWorld
from unimm.data.worlds.interleaved_language import RIGHT, write_answer
from unimm.data.worlds.interleaved_scenes import Exchange, answer_to, meets
from unimm.data.worlds.scenes import Shape
from unimm.data.worlds.shapes_language import parse_caption
from unimm.eval.score import Score
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answers import is_same_answer, side_by_side
from unimm.eval.tasks.drawings import SEEDS
from unimm.eval.tasks.shapes import at_side, name_shapes
from unimm.inference.assistant_message import AssistantMessage
from unimm.inference.engine import Engine

KINDS, PICTURES, WORDS = "right kinds", "pictures right", "words about own pictures right"


@dataclass
class _Talk:
    """A conversation as it goes on: its messages, its pictures so far as the checker reads them, and what was right."""

    record: InterleavedRecord
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    shown: list[Shape] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    right: dict[str, list[bool]] = field(default_factory=lambda: {KINDS: [], PICTURES: [], WORDS: []})

    def add(self, exchange: Exchange, expected: list[str], answer: AssistantMessage) -> None:
        """The next answer, judged."""
        kinds = ["text" if isinstance(part, str) else "image" for part in answer.parts]
        drawn = [np.asarray(image) for image in answer.images]
        read = [read_objects(at_side(image)) for image in drawn]
        fitting = [meets(objects, exchange.looks) for objects in read]
        usual = [["image", "text"], ["image", "text", "image"]] if exchange.checks else [expected]
        self.right[KINDS].append(kinds in usual)
        if exchange.picture is not None:
            self.right[PICTURES].append(bool(fitting) and fitting[-1])
        self.images += drawn
        self.shown = read[-1] if read else self.shown
        self._judge_words(exchange, answer.text, fitting)
        self.messages.append(answer.message)
        self.said.append(f"{answer.text} [{name_shapes(self.shown)}]" if read else answer.text)

    def _judge_words(self, exchange: Exchange, text: str, fitting: list[bool]) -> None:
        language = self.record.language
        if exchange.asked is not None and self.images:
            answer = answer_to(exchange.asked, self.shown)
            if answer is not None:  # else its own picture has no answer to that
                self.right[WORDS].append(is_same_answer(text, write_answer(exchange.asked, answer, language)))
        if exchange.before and fitting:
            told = tuple(parse_caption(text))
            self.right[WORDS].append(bool(told) and meets(self.shown, told))
        if exchange.checks and fitting:
            self.right[WORDS].append((RIGHT[language] in text) == fitting[0])


class Interleaved(ItemTask):
    """Conversations of the interleaved world; details by their kind and language.

    num_items: conversations. split: "test", "validation" or "held_out". kinds: of conversations. seed: of all of it.
    temperature, guidance_scale: of drawings; default: the model's own.
    """

    batch_size = 32

    def __init__(
        self,
        num_items: int = 200,
        seed: int = 0,
        split: str = "test",
        kinds: list[str] | None = None,
        temperature: float | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        self.name = "interleaved" if split == "test" else f"interleaved_{split}"
        self.world, self.num_items, self.seed = InterleavedWorld(split, num_items, seed, kinds), num_items, seed
        self.drawing = {"temperature": temperature, "guidance_scale": guidance_scale}

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """These conversations, turn by turn, all of them in one batch."""
        talks = []
        for item in items:
            record = self.world[item]
            assert isinstance(record, InterleavedRecord)
            talks.append(_Talk(record))
        for turn in range(max((len(talk.record.facts.exchanges) for talk in talks), default=0)):
            going = [(item, talk) for item, talk in zip(items, talks, strict=True) if turn < len(talk.record.facts.exchanges)]
            for _, talk in going:
                talk.messages.append({"role": "user", "content": talk.record.questions[turn].text})
            answers = engine.chat(
                [talk.messages for _, talk in going],
                images="auto",
                max_images=3,
                max_new_tokens=64,
                seed=[(self.seed * SEEDS + item) * 8 + turn for item, _ in going],
                drawing=self.drawing,
            )
            for (_, talk), answer in zip(going, answers, strict=True):
                parts = talk.record.questions[turn].answer_parts
                kinds = ["text" if isinstance(part, str) else "image" for part in parts]
                talk.add(talk.record.facts.exchanges[turn], kinds, answer)
        yield from map(_example, talks)

    def score(self, examples: list[Example]) -> Result:
        """The share of conversations in which all is right, and the three shares."""
        others: dict[str, Score] = {}
        for what in (KINDS, PICTURES, WORDS):
            count = sum(int(one.numbers[f"num {what}"]) for one in examples)
            if count:
                others[what] = Score.share(sum(one.numbers[what] for one in examples) / count, count)
        return summarize(self.name, examples, other_scores=others)


def _example(talk: _Talk) -> Example:
    wrong = [what for what, marks in talk.right.items() if not all(marks)]
    numbers = {what: float(sum(marks)) for what, marks in talk.right.items()}
    numbers |= {f"num {what}": float(len(marks)) for what, marks in talk.right.items()}
    questions = talk.record.questions
    return Example(
        key=talk.record.key,
        prompt=" | ".join(one.text for one in questions),
        expected=" | ".join(one.answer or "a picture" for one in questions),
        answer=" | ".join(talk.said),
        correct=not wrong,
        reason="not: " + ", ".join(wrong) if wrong else "",
        category=talk.record.facts.kind,
        language=talk.record.language,
        drawn=True,
        image=side_by_side(talk.images) if talk.images else None,
        numbers=numbers,
    )
