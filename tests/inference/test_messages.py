"""Chat messages in the forms that people hold: the same conversation is the same prompt, and nothing is silently left out."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimm.data.image import look
from unimm.inference.engine import Engine
from unimm.inference.messages import PLACEHOLDER
from unimm.inference.text_stream import TextStream
from unimm.sequence import Sequence

RED, BLUE = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
QUESTION = "What colour is it?"


def part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def asked(*images: Any, text: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": [*map(part, images), {"type": "text", "text": text}]}


def read(engine: Engine, messages: Any) -> tuple[Sequence, list[np.ndarray]]:
    """The prompt, and its images (which sequences do not compare)."""
    sequence = engine._chat_request(messages, 8)[0].sequence
    return sequence, [segment.pixels for segment in sequence.segments if segment.pixels is not None]


def assert_same(engine: Engine, messages: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    (sequence, pixels), (other, others) = read(engine, messages), read(engine, expected)
    assert sequence == other
    assert len(pixels) == len(others) and all(np.array_equal(*both) for both in zip(pixels, others, strict=True))


def as_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("text", [f"{PLACEHOLDER}\n{QUESTION}", f"{PLACEHOLDER}{QUESTION}"])
@pytest.mark.parametrize("roles", [("<|User|>", "<|Assistant|>"), ("User", "Assistant"), ("user", "assistant")])
def test_deepseek_s_own_messages_are_read(tiny_engine: Engine, text: str, roles: tuple[str, str]) -> None:
    messages = [{"role": roles[0], "content": text, "images": [RED]}, {"role": roles[1], "content": ""}]
    assert_same(tiny_engine, messages, [asked(RED)])


def test_images_stand_at_their_placeholders_in_order(tiny_engine: Engine) -> None:
    one = {"role": "user", "content": f"{PLACEHOLDER}\n{PLACEHOLDER}\nWhich is red?", "images": [RED, BLUE]}
    assert_same(tiny_engine, [one], [asked(RED, BLUE, text="Which is red?")])
    between = {"role": "user", "content": f"First {PLACEHOLDER} then {PLACEHOLDER}", "images": [BLUE, RED]}
    parts = [{"type": "text", "text": "First "}, part(BLUE), {"type": "text", "text": " then "}, part(RED)]
    assert_same(tiny_engine, [between], [{"role": "user", "content": parts}])
    _, pixels = read(tiny_engine, [between])
    assert all(
        np.array_equal(got, look(image, tiny_engine.template.image_size))
        for got, image in zip(pixels, (BLUE, RED), strict=True)
    )


@pytest.mark.parametrize("last", [{"role": "assistant", "content": said} for said in ("", " \n", [], None)])
def test_an_empty_last_answer_is_the_place_to_answer(tiny_engine: Engine, last: dict[str, Any]) -> None:
    assert_same(tiny_engine, [asked(RED), last], [asked(RED)])


def test_an_answer_that_has_begun_is_continued(tiny_engine: Engine) -> None:
    """What was said stands where it would have been written, unended, and the text goes on from there."""
    messages = [asked(RED), {"role": "assistant", "content": "It is \n"}]
    (sequence, pixels), (alone, _) = read(tiny_engine, messages), read(tiny_engine, [asked(RED)])
    ids = [segment.ids for segment in sequence.segments]
    joint = [*alone.segments[-2].ids[:-1], *tiny_engine.tokenizer.encode(": It is")]
    assert [*ids[-3], *ids[-2]] == joint if len(ids) > len(alone.segments) else list(ids[-2]) == joint
    assert sequence.segments[-1] == alone.segments[-1] and len(pixels) == 1
    found = tiny_engine.complete(messages, max_new_tokens=8)
    assert list(found.ids) == tiny_engine.decoder.fill([tiny_engine._chat_request(messages, 8)[0]])[0]
    assert found.text == tiny_engine.tokenizer.decode(found.ids).rstrip()
    assert "".join(tiny_engine.chat(messages, stream=True, max_new_tokens=8)).rstrip() == found.text


def test_white_space_before_the_rest_of_an_answer_counts(tiny_engine: Engine) -> None:
    """ "The col" goes on with "our", "The" with " colour"."""
    for continues, text in ((True, " colour"), (False, "colour")):
        writer = TextStream(tiny_engine.tokenizer, continues=continues)
        pieces = [writer.push(token) for token in tiny_engine.tokenizer.encode(" colour \n")]
        assert ("".join(pieces) + writer.finish()).rstrip() == writer.text == text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": as_uri(RED)}},
        {"type": "image_url", "image_url": {"url": as_uri(RED), "detail": "auto"}},
        {"type": "image_url", "image_url": as_uri(RED)},
        {"type": "image", "url": as_uri(RED), "image": None},
        {"type": "image", "base64": as_uri(RED).partition(",")[2]},
    ],
)
def test_parts_of_other_clients_are_images(tiny_engine: Engine, part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}], "name": None}]
    assert_same(tiny_engine, messages, [asked(RED)])


def one(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (one(f"{PLACEHOLDER} a", images=[RED, BLUE]), '2 "images", but 1 <image_placeholder>'),
        (one("a", images=[RED]), '1 "images", but 0 <image_placeholder>'),
        (one(f"{PLACEHOLDER} a", images=[]), '0 "images", but 1'),
        (one("a", images=RED), "holds a list"),
        (one([part(RED)], images=[RED]), "or use parts"),
        (one("a", name="Kim"), "not 'name'"),
        (one("a", image=RED), "not 'image'"),
        (one([{"type": "text", "text": "a", "cache": 1}]), "type text has type, text, not 'cache'"),
        (one([part(RED) | {"path": "a.png"}]), "not 2 of them"),
        (one([{"type": "image"}]), "not 0 of them"),
        (one([{"type": "image", "base64": "%"}]), "not valid base64"),
        (one([{"type": "image_url", "image_url": {}}]), "A part is"),
        (one([{"type": "image_url", "image_url": {"url": as_uri(RED), "detail": "zebra"}}]), '"detail"'),
        (one([{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]), "web address"),
        ([{"role": "assistant", "content": "Well,"}], "no message to answer"),
        ([{"role": "system", "content": "a"}, {"role": "assistant", "content": ""}], "no message to answer"),
        ([*one("a"), {"role": "system", "content": "b"}], '"system" comes first'),
        ([{"role": ["user"], "content": "a"}], "A message is"),
        (one([{"type": "x" * 10_000}]), "of type text, image or image_url"),
    ],
)
def test_what_would_not_be_followed_is_refused(tiny_engine: Engine, messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        tiny_engine.chat(messages, max_new_tokens=2)
    assert len(str(refused.value)) < 300


def test_a_placeholder_that_somebody_typed_is_text(tiny_engine: Engine) -> None:
    sequence, pixels = read(tiny_engine, one(f"What does {PLACEHOLDER} mean?"))
    assert not pixels
    assert tiny_engine.tokenizer.special.image_placeholder not in [i for one in sequence.segments for i in one.ids]


def test_a_list_of_conversations_is_answered_in_one_batch(tiny_engine: Engine) -> None:
    """Each gets what it gets alone, whether it is sampled, or an answer of it has begun."""
    begun = {"role": "assistant", "content": "It is \n"}
    conversations = [[asked(RED)], [asked(BLUE), begun], one("What colour is the square?"), [asked(BLUE)]]
    for settings in ({}, {"temperature": 1.0, "seed": 3}, {"logprobs": True, "stop": "e"}):
        together = tiny_engine.complete(conversations, max_new_tokens=8, **settings)
        alone = [tiny_engine.complete(messages, max_new_tokens=8, **settings) for messages in conversations]
        assert [(one.text, one.ids, one.finish_reason) for one in together] == [
            (one.text, one.ids, one.finish_reason) for one in alone
        ]
        assert (together[0].logprobs is None) == ("logprobs" not in settings)
    stats = tiny_engine.decoder.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    with pytest.raises(ValueError, match="Messages are a list"):
        tiny_engine.complete([conversations[0], conversations[0][0]])  # pyright: ignore[reportArgumentType]
