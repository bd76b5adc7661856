"""Chat completions by OpenAI's own client: what the engine says, streamed or not, alone and among others; drawings in chats."""

import asyncio
import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from unimm.inference.engine import Engine

QUESTION: list[Any] = [{"role": "user", "content": "How many circles are there?"}]


def picture(colour: str = "red") -> Image.Image:
    """An image that the demo has something to say about."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste(colour, (16, 16, 48, 48))
    return image


def data_uri(image: Image.Image) -> str:
    """As clients send pictures."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def opened(uri: str) -> Image.Image:
    """As clients read them."""
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_answers_are_the_engines_own(client: openai.OpenAI, demo_engine: Engine) -> None:
    settings: dict[str, Any] = {"temperature": 1.5, "seed": 5, "top_p": 0.95}
    reply = client.chat.completions.create(model="demo", messages=QUESTION, n=3, max_tokens=8, **settings)
    expected = [demo_engine.complete(QUESTION, 8, index=index, **settings) for index in range(3)]
    assert [choice.message.content for choice in reply.choices] == [one.text for one in expected]
    assert [choice.finish_reason for choice in reply.choices] == [one.finish_reason for one in expected]
    assert reply.usage and reply.usage.prompt_tokens == expected[0].num_prompt_positions
    assert reply.usage.completion_tokens == sum(len(one.ids) for one in expected)


def test_votes_give_one_answer(client: openai.OpenAI, demo_engine: Engine) -> None:
    """The engine's own, streamed or not; and no votes of drawings, or on several answers."""
    show = {"type": "image_url", "image_url": {"url": data_uri(picture())}}
    asked: list[Any] = [{"role": "user", "content": [show, {"type": "text", "text": "What shape is it?"}]}]
    settings: dict[str, Any] = {"model": "demo", "messages": asked, "seed": 5, "max_tokens": 8, "temperature": 1.5}
    reply = client.chat.completions.create(**settings, extra_body={"votes": 3})
    expected = demo_engine.answer(picture(), "What shape is it?", 8, 1.5, votes=3, seed=5)
    assert [choice.message.content for choice in reply.choices] == [expected]
    drafts = [demo_engine.complete(asked, 8, 1.5 if index else 0.0, seed=5, index=index) for index in range(3)]
    assert reply.usage and reply.usage.completion_tokens == sum(len(one.ids) for one in drafts)  # all that was written
    events = client.chat.completions.create(**settings, extra_body={"votes": 3}, stream=True)
    assert "".join(one.delta.content or "" for event in events for one in event.choices) == expected
    for wrong in ({"votes": 3, "n": 2}, {"votes": 10**6}, {"votes": 3, "modalities": ["image"]}, {"votes": 0}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**settings, extra_body=wrong)


def test_images_turns_and_a_system_message(client: openai.OpenAI, demo_engine: Engine) -> None:
    first, second = picture(), picture("blue")
    show = [{"type": "image_url", "image_url": {"url": data_uri(one), "detail": "auto"}} for one in (first, second)]
    turns: list[Any] = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "What colour is it?"}]
    asked: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [*show, {"type": "text", "text": "Are they squares?"}]},
        *turns,
    ]
    reply = client.chat.completions.create(model="", messages=asked, max_completion_tokens=12)
    looked = [{"type": "image", "image": one} for one in (first, second)]
    same = [{"role": "system", "content": "Be brief."}, {**asked[1], "content": [*looked, asked[1]["content"][2]]}, *turns]
    assert reply.choices[0].message.content == demo_engine.complete(same, 12).text


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": QUESTION, "n": 2, "seed": 1, "temperature": 2.0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    usage = {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}
    events = list(client.chat.completions.create(**asked, **usage, stream=True))
    for index, choice in enumerate(whole.choices):
        own = [one for event in events for one in event.choices if one.index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason
        assert "".join(one.delta.content or "" for one in own).strip() == choice.message.content
        tokens = [token for one in own if one.logprobs for token in one.logprobs.content or []]
        assert choice.logprobs and tokens == choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 and bytes(token.bytes or []).decode() == token.token for token in tokens)
    assert events[-1].usage == whole.usage and not events[-1].choices


def test_stop_and_room(client: openai.OpenAI, demo_engine: Engine) -> None:
    text = demo_engine.complete(QUESTION, 24, temperature=2.0, seed=3).text
    stop = text[len(text) // 2]
    settings: dict[str, Any] = {"model": "demo", "messages": QUESTION, "temperature": 2.0, "seed": 3}
    reply = client.chat.completions.create(**settings, max_tokens=24, stop=[stop])
    assert reply.choices[0].message.content == text.partition(stop)[0].strip() and reply.choices[0].finish_reason == "stop"
    reply = client.chat.completions.create(**settings, max_tokens=100_000)  # at most: the model has room for about 500
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_many_clients_at_once_get_what_each_gets_alone(server: str, demo_engine: Engine) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            texts = [
                client.chat.completions.create(model="demo", messages=QUESTION, seed=seed, temperature=2.0, max_tokens=6)
                for seed in range(4)
            ]
            return await asyncio.gather(*texts, client.images.generate(model="demo", prompt="a dot", extra_body={"seed": 2}))

    *texts, drawing = asyncio.run(ask())
    expected = [demo_engine.complete(QUESTION, 6, temperature=2.0, seed=seed).text for seed in range(4)]
    assert [one.choices[0].message.content for one in texts] == expected
    image = Image.open(io.BytesIO(base64.b64decode(drawing.data[0].b64_json)))
    assert np.array_equal(image, demo_engine.generate_images("a dot", seed=2)[0])


def test_drawings_in_a_chat(client: openai.OpenAI, demo_engine: Engine) -> None:
    history: list[Any] = [
        {"role": "user", "content": "a red circle"},
        {"role": "assistant", "content": "", "images": [{"type": "image_url", "image_url": {"url": data_uri(picture())}}]},
        {"role": "user", "content": "three blue squares"},
    ]
    asked: dict[str, Any] = {"model": "demo", "messages": history, "seed": 4, "modalities": ["image", "text"]}
    png: dict[str, Any] = {"output_format": "png"}
    expected = demo_engine.generate_images("three blue squares", seed=4)[0]
    message: Any = client.chat.completions.create(**asked, extra_body=png).choices[0].message
    assert message.content == "" and np.array_equal(opened(message.images[0]["image_url"]["url"]), expected)
    message = client.chat.completions.create(**asked, extra_body={**png, "image_placement": "content"}).choices[0].message
    assert np.array_equal(opened(message.content[0]["image_url"]["url"]), expected)
    deltas: list[Any] = [event.choices[0].delta for event in client.chat.completions.create(**asked, stream=True)]
    shown = [image["image_url"]["url"] for delta in deltas for image in getattr(delta, "images", [])]
    assert len(shown) == 1 and shown[0].startswith("data:image/webp;base64,") and opened(shown[0]).size == (64, 64)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": "x" * 50_001}]}, "messages"),
    ({"messages": QUESTION, "n": 11}, "n"),
    ({"messages": QUESTION, "temperature": "hot"}, "temperature"),
    ({"messages": QUESTION, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": QUESTION, "frequency_penalty": 0.5}, "frequency_penalty"),
    ({"messages": QUESTION, "stop": ["a"] * 17}, "stop"),
    ({"messages": QUESTION, "top_logprobs": 3}, "top_logprobs"),
    ({"messages": QUESTION, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": QUESTION, "modalities": ["audio"]}, "modalities.0"),
    ({"messages": QUESTION, "steps": 1}, "steps"),
    ({"messages": QUESTION, "drawing": "latents"}, "drawing"),
    ({"messages": QUESTION, "modalities": ["image"], "size": "300x200"}, "size"),
    ({"messages": [{"role": "system", "content": "x"}], "modalities": ["image"]}, "messages"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_done_is_refused_in_a_sentence(server: str, body: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=120)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert error["message"].endswith(".") and "\n" not in error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "word " * 2000}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "/etc/passwd"}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": "alone"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}],
    ],
    ids=["long", "path", "surrogate", "no user", "late system"],
)
def test_conversations_that_no_model_answers(server: str, messages: list[dict[str, Any]]) -> None:
    response = httpx.post(f"{server}/v1/chat/completions", content=json.dumps({"messages": messages}), timeout=120)
    assert response.status_code == 400 and "passwd" not in response.text
