"""Records with videos, in the forms that LLaVA-Video, ms-swift and messages have: each stands where it is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import make_template

from unimm.data.conversion.entries import CannotHoldError, EntryReader
from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.records import Record, Video
from unimm.data.template import PromptFormat, Template
from unimm.data.video.choosing import VideoFormat
from unimm.data.video.writing import write_video
from unimm.data.views import Dialogue
from unimm.precompute.bad_images import BadImage, UsedImages
from unimm.sequence import Kind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = [np.full((16, 16, 3), 40 * number, np.uint8) for number in range(4)]
    write_video(tmp_path / "a.gif", frames, 2)
    for number, frame in enumerate(frames):
        (tmp_path / "b").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / f"b/{number}.png")
    Image.fromarray(frames[0]).save(tmp_path / "0.png")
    return tmp_path


def say(question: Any, answer: str = "It moves.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read(folder: Path, **entry: Any) -> Record:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    return LlavaJson(path)[0]


def kinds(record: Record) -> str:
    """V for each video, I for each image, in their order."""
    return "".join("V" if isinstance(one.image, Video) else "I" for one in record.images)


ENTRIES: dict[str, tuple[dict[str, Any], str, tuple[Any, ...]]] = {
    "LLaVA-Video": ({"video": "a.gif", "conversations": say("<image>\nWhat?")}, "V", ()),
    "a mark of its own": ({"video": "a.gif", "conversations": say("<video>\nWhat?")}, "V", ()),
    "no mark": ({"videos": ["a.gif"], "messages": say("What?")}, "V", ()),
    "both, as marked": (
        {"images": ["0.png"], "videos": ["a.gif", "b"], "messages": say("<video>One <image> two<video>What?")},
        "VIV",
        (0, "One", 1, "two", 2, "What?"),
    ),
    "a list of frames": ({"videos": [["b/0.png", "b/1.png"]], "messages": say("<video>What?")}, "V", ()),
    "frames": ({"video": ["b/0.png", "b/1.png"], "conversations": say("<video>What?")}, "V", ()),
    "one frame": ({"video": ["0.png"], "conversations": say("<image>What?")}, "V", ()),
    "several": ({"video": ["a.gif", "b"], "conversations": say("<video>What?<video>")}, "VV", (0, "What?", 1)),
    "parts": ({"messages": say([{"type": "text", "text": "See:"}, {"type": "video", "video": "a.gif"}])}, "V", ("See:", 0)),
    "a blank part": ({"videos": ["a.gif"], "messages": say([{"type": "video"}, {"type": "text", "text": "?"}])}, "V", (0, "?")),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_video_stands_where_it_is_said(case: str, folder: Path) -> None:
    entry, expected, parts = ENTRIES[case]
    record = read(folder, **entry)
    assert kinds(record) == expected and record.questions[0].parts in (parts, (0, "What?"))
    assert "<" not in record.questions[0].text


def test_a_conversation_shows_its_frames(folder: Path) -> None:
    own = make_template()
    template = Template(own.tokenizer, PromptFormat(video=VideoFormat(num_frames=3, frame_positions=1)), 16, 4)
    entry = {"video": "a.gif", "conversations": say("<video>\nWhat?")}
    sequence = Dialogue()(read(folder, **entry), template, np.random.default_rng(0))
    assert [one.length for one in sequence.segments if one.kind == Kind.PIXELS] == [1, 1, 1]
    asked = [{"type": "video", "video": "b", "num_frames": 2}, {"type": "text", "text": "What?"}]
    sequence = Dialogue()(read(folder, messages=say(asked)), template, np.random.default_rng(0))
    assert [one.length for one in sequence.segments if one.kind == Kind.PIXELS] == [1, 1]
    with pytest.raises(ValueError, match="not made for videos"):
        Dialogue()(read(folder, **entry), own, np.random.default_rng(0))


def test_a_field_names_it(folder: Path) -> None:
    path = folder / "c.jsonl"
    path.write_text(json.dumps({"clip": "a.gif", "ask": "What?", "say": "It moves."}) + "\n", encoding="utf-8")
    record = JsonLines(path, Fields(video="clip", question="ask", answer="say"))[0]
    assert kinds(record) == "V" and record.questions[0].answer == "It moves."
    path.write_text(json.dumps({"clip": ["b/0.png", "b/1.png", "b/2.png"], "ask": "What?", "say": "It moves."}) + "\n")
    record = JsonLines(path, Fields(video="clip", question="ask", answer="say"))[0]
    assert kinds(record) == "V" and isinstance(record.image, Video) and record.image.num_frames == 3


def test_what_cannot_be_stored_or_written_is_said(folder: Path) -> None:
    record = read(folder, video="a.gif", conversations=say("<video>What?"))
    used = UsedImages([record], lambda image: image)[0]  # pyright: ignore[reportArgumentType]
    assert isinstance(used, BadImage) and "it is a video, of which nothing is stored" in used.reason
    with pytest.raises(CannotHoldError, match="has a video, which is not converted"):
        _ = EntryReader([record])[0]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"speaks of <video> 2 times, and the entry names 1 video: write"):
        read(folder, video=["b/0.png", "b/1.png"], conversations=say("<video><video>What?"))
    with pytest.raises(ValueError, match=r"record a\.jsonl/0: the video .*none\.mp4 is not there"):
        read(folder, video="none.mp4", conversations=say("<video>What?"))
