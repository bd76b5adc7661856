"""The world of drawn shapes as a data set: scenes, captions, questions, prompts and plain sentences in two languages.

Record `index` of a split depends on (seed, split, index) alone. Nothing is stored or downloaded; an item takes less than
a millisecond, so fresh scenes can go on for ever.
"""

from unimm.data.records import Record
from unimm.data.worlds.scenes import SPLITS, make_generator, make_scene, render
from unimm.data.worlds.shapes_language import drawing_prompts, write_captions
from unimm.data.worlds.shapes_questions import write_questions, write_text


class ShapesWorld:
    """Scenes of 0-4 shapes, 64x64 px; splits "train", "validation", "test" and "held_out" (pairs never trained on).

    Records carry the image as (64, 64, 3) uint8 and the `Scene` as facts. Raises ValueError for an unknown split and
    IndexError outside `num_records`.
    """

    def __init__(self, split: str = "train", num_records: int = 100_000, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.split = split
        self.num_records = num_records
        self.seed = seed

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        scene = make_scene(self.seed, self.split, index)
        captions, prompts, questions, text = (
            make_generator(self.seed, self.split, index, purpose) for purpose in ("captions", "prompts", "questions", "text")
        )
        return Record(
            key=f"shapes/{self.split}/{index}",
            image=render(scene),
            captions=write_captions(scene, captions),
            questions=write_questions(scene, questions),
            prompts=drawing_prompts(scene, prompts),
            text=write_text(text),
            facts=scene,
        )
