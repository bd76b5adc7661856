"""Answers with images by OpenAI's client: the engine's own, streamed or not, in both placements, and on in the next turn."""

import base64
import io
from typing import Any

import openai
import pytest
from PIL import Image

from unimm.inference.engine import Engine

ASKED: list[Any] = [{"role": "user", "content": "a large red circle"}]
WORDS: dict[str, Any] = {"images": "always", "max_images": 1}


def opened(part: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


def ask(client: openai.OpenAI, messages: list[Any], stream: bool = False, **more: Any) -> Any:
    settings: dict[str, Any] = {"model": "demo", "messages": messages, "seed": 5, "max_tokens": 4, "stream": stream}
    return client.chat.completions.create(**settings, extra_body={**WORDS, "output_format": "png", **more})


def test_an_answer_with_images_is_the_engines_own(client: openai.OpenAI, demo_engine: Engine) -> None:
    expected = demo_engine.chat(ASKED, images="always", max_images=1, max_new_tokens=4, seed=5)
    reply = ask(client, ASKED)
    message = reply.choices[0].message
    assert message.content == expected.text and reply.choices[0].finish_reason == expected.finish_reason
    (part,) = message.images
    assert opened(part).convert("RGB").tobytes() == expected.images[0].tobytes()
    assert reply.usage.completion_tokens == expected.num_tokens + 64
    placed = ask(client, ASKED, image_placement="content").choices[0].message.content
    assert [one["type"] for one in placed] == ["image_url", "text"] and placed[1]["text"] == expected.text
    events = [one for event in ask(client, ASKED, stream=True) for one in event.choices]
    deltas = [one.delta for one in events]
    drawn = [number for number, delta in enumerate(deltas) if getattr(delta, "images", None)]
    assert len(drawn) == 1 and all(not delta.content for delta in deltas[: drawn[0]]), "the image comes before its words"
    assert opened(deltas[drawn[0]].images[0]).convert("RGB").tobytes() == expected.images[0].tobytes()
    assert "".join(delta.content or "" for delta in deltas).strip() == expected.text
    assert events[-1].finish_reason == expected.finish_reason
    # the next turn reads it as a drawing of its own
    turns = [*ASKED, {"role": "assistant", "content": "", "images": message.images}, {"role": "user", "content": "a cross"}]
    own = [
        ASKED[0],
        {"role": "assistant", "content": [{"type": "image", "image": expected.images[0]}, {"type": "text", "text": ""}]},
        turns[2],
    ]
    again = demo_engine.chat(own, images="always", max_images=1, max_new_tokens=4, seed=5)
    assert opened(ask(client, turns).choices[0].message.images[0]).convert("RGB").tobytes() == again.images[0].tobytes()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"votes": 2}, "votes"),
        ({"modalities": ["image", "text"]}, "modalities"),
        ({"min_p": 0.1}, "min_p"),
        ({"min_p": 1}, "min_p"),
        ({"steps": 1}, "steps"),
        ({"max_images": 10**6}, "max_images"),
        ({"images": "some"}, "images"),
        ({"size": "3x3"}, "size"),
    ],
)
def test_what_answers_with_images_do_not_have_is_refused(client: openai.OpenAI, more: dict[str, Any], word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        ask(client, ASKED, **more)
