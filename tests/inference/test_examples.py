"""Several images in one question, and examples before it: the same as a conversation that shows them, and refusals."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimm.data.few_shot_view import FewShot
from unimm.data.worlds.few_shot import FewShotWorld
from unimm.inference.engine import Engine
from unimm.inference.examples import ImageQuestion

RED, BLUE, GREEN = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green"))


def said(*images: Any, text: str = "What differs?") -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image", "image": one} for one in images), {"type": "text", "text": text}]}


def answered(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_a_tuple_is_several_images_of_one_question(tiny_engine: Engine) -> None:
    expected = tiny_engine.chat([said(RED, BLUE)], max_new_tokens=8)
    assert tiny_engine.answer((RED, BLUE), "What differs?", max_new_tokens=8) == expected
    pairs, both = [(RED, BLUE), (BLUE, GREEN), RED], "What differs?"
    alone = [tiny_engine.answer(one, both, max_new_tokens=8) for one in pairs]
    assert tiny_engine.answer(pairs, both, max_new_tokens=8) == alone and alone[0] == expected
    assert tiny_engine.answer([RED, BLUE], both, max_new_tokens=8) == [
        tiny_engine.answer(one, both, max_new_tokens=8) for one in (RED, BLUE)
    ]


def test_examples_are_turns_before_the_question(tiny_engine: Engine) -> None:
    text, examples = "What is this?", [(RED, "dax"), ((BLUE, GREEN), "wug")]
    messages = [said(RED, text=text), answered("dax"), said(BLUE, GREEN, text=text), answered("wug"), said(BLUE, text=text)]
    expected = tiny_engine.chat(messages, max_new_tokens=8)
    assert tiny_engine.answer(BLUE, text, max_new_tokens=8, examples=examples) == expected
    each = [[], examples]
    assert tiny_engine.answer([BLUE, BLUE], text, max_new_tokens=8, examples=each) == [
        tiny_engine.answer(BLUE, text, max_new_tokens=8), expected,
    ]  # fmt: skip
    file = io.BytesIO()
    RED.save(file, "PNG")
    of_file = tiny_engine.answer([BLUE, BLUE], text, max_new_tokens=8, examples=[(file, "dax"), examples[1]])
    assert of_file == [expected, expected], "a file is read once, and goes with every question"


def test_it_is_asked_as_it_was_trained(tiny_engine: Engine) -> None:
    """The sequence of the view, up to the answer."""
    record = FewShotWorld(num_records=2, num_examples=3, languages=["en"])[1]
    trained = FewShot(3, 3)(record, tiny_engine.template, np.random.default_rng(0))
    shown = [segment.pixels for segment in trained.segments if segment.pixels is not None]
    answers = [tiny_engine.tokenizer.decode(s.ids).strip() for s in trained.segments if s.learn]
    images = {look.tobytes(): number for number, look in enumerate(_looks(tiny_engine, record))}
    numbers = [images[pixels.tobytes()] for pixels in shown]
    examples = [(record.images[number].image, answer) for number, answer in zip(numbers[:-1], answers, strict=False)]
    turns = ImageQuestion.read(
        tiny_engine.template, record.images[numbers[-1]].image, record.facts.question, examples, 999
    ).turns()
    asked = tiny_engine.template.chat(turns, 4)
    ids = [i for segment in asked.segments for i in segment.ids]
    assert ids == [i for segment in trained.segments for i in segment.ids][: len(ids)]


def _looks(engine: Engine, record: Any) -> list[np.ndarray]:
    return [engine.template.pixels(one.image).pixels for one in record.images]


@pytest.mark.parametrize(
    ("image", "examples", "told"),
    [
        ((), None, "A tuple of images is empty"),
        ((RED,) * 70, None, "70 images take 280 positions, and there are 256: show fewer"),
        (RED, [(RED, "dax")] * 64, "65 images take 260 positions, and there are 256: show fewer"),
        (RED, [(RED, " ")], "The answer of an example is empty"),
        (RED, [(RED, 3)], "answer of an example is a string, not int"),
        (RED, [RED], r"An example is a pair \(image, answer\)"),
        (RED, [(RED,)], r"An example is a pair \(image, answer\)"),
        (RED, {"a": RED}, r"examples are a list of pairs \(image, answer\), not dict"),
        ([RED, RED], [[]], "examples for 1 questions, and 2 are asked"),
        (RED, [("nowhere.png", "dax")], "nowhere.png.*there is no such file"),
        ((RED, "nowhere.png"), None, "nowhere.png.*there is no such file"),
        ((RED, [BLUE]), None, "An image is a path, .* not list"),
    ],
)
def test_what_cannot_be_asked_ends_in_one_sentence(image: Any, examples: Any, told: str, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        tiny_engine.answer(image, "What differs?", max_new_tokens=4, examples=examples)
    assert "\n" not in str(caught.value)


def test_examples_that_leave_no_room_to_answer_are_refused(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"takes \d+ positions .*ask for fewer images or new tokens"):
        tiny_engine.answer(RED, "What is this?", max_new_tokens=100, examples=[(RED, "dax")] * 12)
