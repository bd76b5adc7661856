"""Videos asked about: the frames are in the prompt with their times, pooled where the model is so made, from every door."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import unimm
from unimm.batch import collate
from unimm.cli.app import app
from unimm.data.template import PromptFormat, Turn
from unimm.data.video.choosing import VideoFormat
from unimm.data.video.sources import open_video
from unimm.data.video.writing import write_video
from unimm.inference.engine import Engine
from unimm.inference.second_look import Verification
from unimm.models.ports.pixels import pool_positions
from unimm.sequence import Kind, Segment, Sequence

pytest.importorskip("av", reason='PyAV is not installed: pip install "unimm[video]"')

QUESTION = "How many circles?"


def make_frames(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(tiny_engine: Engine) -> Engine:
    """The tiny model as one that takes 4 frames of a position each."""
    video = VideoFormat(num_frames=4, frame_positions=1)
    return Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(video=video)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", list(make_frames()), 2)


def test_frames_stand_in_the_prompt_with_their_times(engine: Engine) -> None:
    frames = make_frames(4)
    video = open_video(frames, frame_rate=2)
    sequence = engine.template.chat([Turn("user", (engine.template.show(video), QUESTION))], 4)
    looked = [segment for segment in sequence.segments if segment.kind == Kind.PIXELS]
    assert [segment.length for segment in looked] == [1, 1, 1, 1]
    pixels = [segment.pixels for segment in looked]
    assert all(np.array_equal(own, engine.template.pixels(frame).pixels) for own, frame in zip(pixels, frames, strict=True))
    said = engine.bundle.tokenizer.tokenizer.decode([id for segment in sequence.segments for id in segment.ids])
    plain = "".join(part for part in said.split() if part)
    assert all(f"{time}s:" in plain for time in ("0.2", "0.8", "1.2", "1.8")) and "Howmanycircles?" in plain


def test_a_frame_is_the_mean_of_squares_of_its_positions(engine: Engine) -> None:
    """And an image beside it is what it was."""
    image, model = make_frames(1)[0], engine.model
    template = engine.template
    (whole,) = template.look(image)
    frame = template.show(open_video(image[None])).shown[0][1][0]  # pyright: ignore[reportAttributeAccessIssue]
    text = Segment.text([1, 2])
    with torch.no_grad():
        # As many images beside it as below: on some CPUs sums of another number of images are rounded otherwise.
        alone = model.embed(collate([[Sequence((whole, text, whole, whole))]]))[0]
        both = model.embed(collate([[Sequence((frame, text, whole, frame))]]))[0]
    assert torch.equal(both[3:7], alone[:4]) and torch.allclose(both[0], alone[:4].mean(0), atol=1e-6)
    assert torch.equal(both[7], both[0]) and torch.equal(both[1:3], alone[4:6])
    grid = torch.arange(16.0)[None, :, None]
    assert pool_positions(grid, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(ValueError, match=r"16 positions cannot take 5: set .*frame_positions to one of 16, 4, 1"):
        pool_positions(grid, 5)
    wrong = PromptFormat(video=VideoFormat(frame_positions=3))
    with pytest.raises(ValueError, match="4 positions cannot take 3"):
        Engine(replace(engine.bundle, prompt_format=wrong)).answer(open_video(image[None]), QUESTION)


def test_every_form_of_a_video_has_the_same_answer(engine: Engine, clip: Path, tmp_path: Path) -> None:
    expected = engine.answer(clip, QUESTION, 6)
    assert engine.answer(str(clip), QUESTION, 6) == engine.answer(clip.read_bytes(), QUESTION, 6) == expected
    message = {"role": "user", "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": QUESTION}]}
    assert engine.chat([message], max_new_tokens=6) == expected
    url = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{_base64(clip)}"}}
    assert engine.chat([{**message, "content": [url, message["content"][1]]}], max_new_tokens=6) == expected
    frames = make_frames()
    gif, folder = write_video(tmp_path / "clip.gif", list(frames), 2), tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    for source in (gif, folder, frames):
        assert isinstance(engine.answer(source, QUESTION, 4, num_frames=2), str)
    assert engine.answer([clip, frames[0]], QUESTION, 6)[0] == expected  # beside an image
    assert engine.answer(clip, [QUESTION, "What colour?"], 6)[0] == expected
    assert isinstance(engine.caption(clip, num_frames=3), str)


def test_a_detector_is_given_the_video_and_not_its_frames(engine: Engine, clip: Path) -> None:
    told: list = []
    check = Verification(claims=lambda text: ["a dog"], shown=lambda video, claims: told.append(video) or [1.0], whole=False)
    engine.caption(clip, 3, verify=check)
    assert told == [clip]


def _base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_a_model_that_takes_no_videos_says_so(engine: Engine, tiny_engine: Engine, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not made for videos: train it with prompt_format\.video"):
        tiny_engine.answer(clip, QUESTION)
    with pytest.raises(ValueError, match="frame by frame"):
        tiny_engine.alignment(open_video(clip), "a circle")
    with pytest.raises(ValueError, match="looked at as pixels, and this model sees codes"):
        PromptFormat(sees="codes", video=VideoFormat())
    with pytest.raises(ValueError, match="num_frames"):
        engine.answer(clip, QUESTION, num_frames=0)
    long = Engine(replace(engine.bundle, prompt_format=PromptFormat(video=VideoFormat(num_frames=100))))
    message = {"role": "user", "content": [{"type": "video", "video": make_frames(100)}, {"type": "text", "text": "?"}]}
    with pytest.raises(ValueError, match="images of the messages take 400 positions, and there are 256"):
        long.chat([message])
    unread = open_video(make_frames(100))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="video take 400 positions, and there are 256"):
        patch.setattr(type(unread), "frames", lambda *_: pytest.fail("frames are read that have no room"))
        long.answer(unread, QUESTION)


def test_how_videos_are_taken_is_saved_with_the_model(engine: Engine, clip: Path, tmp_path: Path) -> None:
    engine.save(tmp_path / "model")
    again = unimm.load(tmp_path / "model", "cpu")
    assert again.prompt_format == engine.prompt_format
    assert again.answer(clip, QUESTION, 6) == engine.answer(clip, QUESTION, 6)
    said = CliRunner().invoke(
        app, ["answer", str(clip), QUESTION, "-m", str(tmp_path / "model"), "--max-new-tokens", "6", "--device", "cpu"]
    )
    assert said.exit_code == 0 and said.output.strip() == engine.answer(clip, QUESTION, 6).strip()
    made = CliRunner().invoke(app, ["data", "clips", str(tmp_path / "clips"), "-n", "2", "--format", "gif"])
    assert made.exit_code == 0 and {path.suffix for path in (tmp_path / "clips").iterdir()} == {".gif", ".jsonl"}
