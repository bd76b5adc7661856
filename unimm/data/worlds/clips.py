"""The world of clips: moving shapes as videos of 8 to 16 frames, with captions and questions about what happens over time.

Clip `index` of a split depends on (seed, split, index) alone. What can happen, and why one frame does not tell it, says
`unimm.data.worlds.clip_scenes`. Questions are in English and Chinese.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from unimm.data.records import Question, Record, Text, Video
from unimm.data.video.writing import write_video
from unimm.data.worlds.clip_scenes import FRAME_RATE, KINDS, MAX_FRAMES, MIN_FRAMES, ClipFacts, make_clip
from unimm.data.worlds.clips_language import write_captions, write_questions
from unimm.data.worlds.scenes import make_generator
from unimm.runtime.number_checks import check_whole

SPLITS = ("train", "validation", "test")


class ClipsWorld:
    """Clips of 64 x 64 px at two frames a second, with `ClipFacts` as facts, and a `Video` in place of an image.

    num_frames: of each clip, 8 to 16. kinds: of what happens, of `clip_scenes.KINDS`, in turn; none: all.

    Raises ValueError for an unknown split or kind, IndexError outside the records.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        num_frames: int = MIN_FRAMES,
        kinds: tuple[str, ...] | list[str] = (),
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"unknown kind {unknown[0]!r}: choose some of {', '.join(KINDS)}")
        self.split, self.num_records, self.seed, self.num_frames = split, num_records, seed, num_frames
        self.kinds = tuple(kinds) or KINDS
        check_whole(self, 0, "num_records", "seed")
        check_whole(self, MIN_FRAMES, "num_frames")
        if num_frames > MAX_FRAMES:
            raise ValueError(f"A clip has at most {MAX_FRAMES} frames, not {num_frames}.")

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        of_kinds = "" if self.kinds == KINDS else f"{'+'.join(self.kinds)}/"
        key = f"clips/{self.split}/{of_kinds}{index}"
        return ClipRecord(key, (self.seed, self.split, index), self.num_frames, self.kinds[index % len(self.kinds)])


class ClipRecord(Record):
    """One clip. Every part has a generator of its own, so it is made when it is first asked for, and always the same."""

    def __init__(self, key: str, place: tuple[int, str, int], num_frames: int, kind: str) -> None:
        vars(self).update(key=key, _place=place, _made=(num_frames, kind))

    def _generator(self, purpose: str) -> np.random.Generator:
        seed, split, index = vars(self)["_place"]
        return make_generator(seed, split, index, purpose)

    @cached_property
    def facts(self) -> ClipFacts:
        seed, split, index = vars(self)["_place"]
        return make_clip(seed, split, index, *vars(self)["_made"])

    @cached_property
    def image(self) -> Video:
        return DrawnClip(self)

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return write_captions(self.facts, self._generator("captions"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return write_questions(self.facts, self._generator("questions"))


class DrawnClip(Video):
    """The frames of a clip, drawn when they are asked for."""

    def __init__(self, record: ClipRecord) -> None:
        self._record, self._num_frames = record, vars(record)["_made"][0]

    @property
    def seconds(self) -> float:
        """Of all frames."""
        return self._num_frames / FRAME_RATE

    @property
    def num_frames(self) -> int:
        """Known without drawing one."""
        return self._num_frames

    def frames(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """(64, 64, 3) uint8 each."""
        for time in times:
            yield self._record.facts.render(self._place(time))

    def _place(self, seconds: float) -> int:
        return min(int(seconds * FRAME_RATE + 1e-6), self._num_frames - 1)


def write_clips(folder: str | Path, dataset: ClipsWorld, suffix: str = "mp4", language: str = "en") -> Path:
    """Clips as files, and their questions as JSON lines in LLaVA-Video's form, which `data=llava` reads: clips.jsonl.

    Raises:
        ValueError: there is no encoder for the suffix here.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(len(dataset)):
        record = dataset[index]
        facts: ClipFacts = record.facts
        name = f"clip-{index:04}.{suffix}"
        write_video(folder / name, [facts.render(number) for number in range(len(facts.frames))], FRAME_RATE)
        turns = []
        for question in (one for one in record.questions if one.language == language):
            turns.append({"from": "human", "value": ("" if turns else "<video>\n") + question.text})
            turns.append({"from": "gpt", "value": question.answer})
        lines.append(json.dumps({"id": record.key, "video": name, "conversations": turns}, ensure_ascii=False))
    path = folder / "clips.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
