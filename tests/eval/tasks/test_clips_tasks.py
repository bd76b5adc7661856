"""Clips as a task: each clip's own question, in both languages, with the frames that are shown; pictures of it are strips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unimm.data.records import Video
from unimm.data.template import PromptFormat
from unimm.data.video.choosing import VideoFormat
from unimm.data.worlds.clip_scenes import KINDS
from unimm.eval import evaluate, load_task
from unimm.eval.tasks.answers import GAP, Answers
from unimm.inference.engine import Engine


def test_items_ask_what_the_clip_was_made_for() -> None:
    for name, kinds in (("clips_answers", KINDS), *((f"clips_{kind}", (kind,)) for kind in KINDS)):
        task = load_task(f"{name}?n=20")
        assert isinstance(task, Answers) and task.name == name and task.num_items == 20
        asked = [task._item(number)[1] for number in range(20)]
        assert {one.category for one in asked} == set(kinds) and {one.language for one in asked} == {"en", "zh"}
    with pytest.raises(ValueError, match="unknown kind 'dance'"):
        load_task("clips_answers?ask=dance")


def test_one_frame_is_another_task(tiny_engine: Engine, tmp_path: Path) -> None:
    video = VideoFormat(num_frames=8, frame_positions=1, time_text="")
    engine = Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(video=video)))
    tasks = [load_task("clips_order?n=2"), load_task("clips_order?n=2&num_frames=1")]
    results = evaluate(engine, tasks, tmp_path, progress=False)
    assert [*results.results] == ["clips_order", "clips_order_1_frames"]
    image = results["clips_order"].examples[0].image
    assert image is not None and image.shape == (64, 8 * 64 + 7 * GAP, 3) and image.dtype == np.uint8
    record = tasks[1]._item(0)[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(record.image, Video) and record.image.settings == {"num_frames": 1}
