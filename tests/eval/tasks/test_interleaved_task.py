"""The task of conversations with drawings: turn by turn after the model's own answers; judged by what it drew itself."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_image_tokenizer, tiny_model
from PIL import Image

from unimm.data.worlds.interleaved import InterleavedRecord, InterleavedWorld
from unimm.data.worlds.interleaved_language import RIGHT
from unimm.data.worlds.scenes import render
from unimm.eval.suites import load_task
from unimm.eval.tasks.interleaved import KINDS, PICTURES, WORDS, Interleaved, _Talk
from unimm.inference.assistant_message import AssistantMessage, DrawnImage
from unimm.inference.engine import Engine


def teacher(record: InterleavedRecord) -> _Talk:
    """A conversation in which the assistant says what training says."""
    talk = _Talk(record)
    for exchange, question in zip(record.facts.exchanges, record.questions, strict=True):
        parts = tuple(
            part if isinstance(part, str) else DrawnImage(Image.fromarray(render(record.facts.scenes[part])), ())
            for part in question.answer_parts
        )
        kinds = ["text" if isinstance(part, str) else "image" for part in question.answer_parts]
        talk.add(exchange, kinds, AssistantMessage(parts))
    return talk


@pytest.mark.parametrize("split", ["test", "held_out"])
def test_what_training_says_is_right(split: str) -> None:
    world = InterleavedWorld(split, 40)
    for index in range(40):
        record = world[index]
        assert isinstance(record, InterleavedRecord)
        talk = teacher(record)
        assert all(all(marks) for marks in talk.right.values()), record.key
        assert len(talk.right[KINDS]) == len(record.questions)


def test_other_pictures_words_and_kinds_are_wrong() -> None:
    world = InterleavedWorld("test", 60, kinds=["check"])
    record = next(one for index in range(60) if len((one := world[index]).facts.scenes) == 2 and one.language == "en")
    (exchange,) = record.facts.exchanges
    wrong, right = (DrawnImage(Image.fromarray(render(scene)), ()) for scene in record.facts.scenes)

    def judged(*parts) -> dict[str, list[bool]]:
        talk = _Talk(record)
        talk.add(exchange, ["image", "text", "image"], AssistantMessage(parts))
        return talk.right

    assert judged(wrong, RIGHT["en"]) == {KINDS: [True], PICTURES: [False], WORDS: [False]}
    assert judged(right, RIGHT["en"]) == {KINDS: [True], PICTURES: [True], WORDS: [True]}
    assert judged("Well.")[KINDS] == [False]
    plain = _Talk(record)
    plain.add(replace(exchange, checks=False), ["image"], AssistantMessage(("Here:", right)))
    assert plain.right[KINDS] == [False] and plain.right[PICTURES] == [True]


def test_an_engine_is_asked_turn_by_turn(tiny_engine: Engine) -> None:
    model = tiny_model(len(tiny_engine.tokenizer), max_positions=512)  # room for three turns of answers that do not end
    tiny_engine = Engine(replace(tiny_engine.bundle, model=model))
    task = load_task('interleaved?n=3&kinds=["story"]')
    assert isinstance(task, Interleaved) and tiny_image_tokenizer().num_codes == 4
    result = task.run(tiny_engine, lambda example: None)
    assert result.count == 3 and {KINDS, PICTURES} <= result.other_scores.keys()
    again = Interleaved(3, kinds=["story"])
    assert [one.answer for one in again.ask(tiny_engine, [1])] == [result.examples[1].answer], "alone as in a batch"
    assert result.other_scores[KINDS].count == sum(len(task.world[index].questions) for index in range(3))
    assert np.isfinite(result.score)
