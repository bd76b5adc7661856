"""Questions about unseen clips: direction of motion, order of events, counting over time, and which moves faster.

With `num_frames=1` only the frame in the middle is shown, which does not tell: what a guesser gets.
"""

from dataclasses import dataclass
from functools import partial

from unimm.data.records import Dataset, Question, Record, Video
from unimm.data.worlds.clip_scenes import KINDS, MIN_FRAMES
from unimm.data.worlds.clips import ClipsWorld
from unimm.eval.tasks.answers import Answers


@dataclass(frozen=True)
class FewFrames:
    """A data set of videos, of which so many frames are shown; None: as the model takes videos."""

    dataset: Dataset
    num_frames: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record = self.dataset[index]
        assert isinstance(record.image, Video)
        return record.with_image(record.image.with_settings(num_frames=self.num_frames))


class ClipsAnswers(Answers):
    """The one question that each clip was made for, languages in turn.

    ask: what is asked, of `clip_scenes.KINDS`; all: each of them in turn.
    num_frames: that the model is shown of each clip; None: as it takes videos. clip_frames: that a clip has.
    """

    def __init__(
        self,
        num_items: int = 300,
        seed: int = 0,
        split: str = "test",
        ask: str = "all",
        num_frames: int | None = None,
        clip_frames: int = MIN_FRAMES,
    ) -> None:
        kinds = KINDS if ask == "all" else (ask,)
        world = ClipsWorld(split, num_items, seed, clip_frames, kinds)
        name = "clips_answers" if ask == "all" else f"clips_{ask}"
        name = name if num_frames is None else f"{name}_{num_frames}_frames"
        super().__init__(name, FewFrames(world, num_frames), num_items, batch_size=32)

    def _item(self, number: int) -> tuple[Record, Question]:
        record = self.dataset[number]
        own = [question for question in record.questions if question.category == record.facts.kind]
        return record, own[number // len(KINDS) % len(own)]


clips_direction = partial(ClipsAnswers, ask="direction")
clips_order = partial(ClipsAnswers, ask="order")
clips_count = partial(ClipsAnswers, ask="count")
clips_passing = partial(ClipsAnswers, ask="passing")
clips_speed = partial(ClipsAnswers, ask="speed")
