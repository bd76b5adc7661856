"""The world of few-shot episodes: two made-up words, bound by examples to two colours, forms, or colours with forms.

Every picture shows one object and asks the same: "Is this a dax or a wug?". Which word means which is drawn anew for each
record, so without examples nobody can do better than to guess. The last question is the one to answer, those before it are its
examples; the first ones of them are fewer examples of the same. Words of a split are in no other split. Record `index` depends
on (seed, split, index) alone; pairs of colour and form that the shapes world holds out are never shown. After "fast concept
binding" in Frozen (Tsimpoukelli et al. 2021, arXiv 2106.13884); two words, so that chance is a half and known.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unimm.data.records import Question, Record, RecordImage
from unimm.data.worlds.comparisons import SPLITS, make_generator
from unimm.data.worlds.comparisons_scenes import draw_scene
from unimm.data.worlds.made_up_words import choose_words
from unimm.data.worlds.scenes import COLOURS, FORMS, SIZES, TRAINING_PAIRS, Scene, choose, render, shuffle
from unimm.data.worlds.shapes_language import LANGUAGES, describe
from unimm.data.worlds.shapes_questions import name_look
from unimm.runtime.number_checks import check_whole

CONCEPTS = ("colour", "form", "pair")
"""What a word may mean: a colour, whatever the form; a form, whatever the colour; a colour with a form."""

STREAM = 200
"""Of the second word of a generator's key, as in the world of comparisons."""

TEMPLATES = {
    "en": ("Is this a {} or a {}?", "A {} or a {}?", "Which is it, a {} or a {}?"),
    "zh": ("这是{}还是{}？", "是{}还是{}？"),
}

OPEN_TEMPLATES = {
    "en": ("What is this?", "What is this called?", "Name this."),
    "zh": ("这是什么？", "这叫什么？"),
}

ASKING = ("choice", "open", "bare")
"""How an episode asks: a choice of both words; open, so that only the examples say what the words are; bare, an object that is
told and no question."""

Value = tuple[str | None, str | None]
"""(colour, form) that a word means; None where that is left open."""


@dataclass(frozen=True)
class Episode:
    """Two words, what they mean, the question, and the scenes with the right word for each; the last one is the query."""

    concept: str
    language: str
    words: tuple[str, str]
    values: tuple[Value, Value]
    question: str
    scenes: tuple[Scene, ...]
    answers: tuple[str, ...]


class FewShotWorld:
    """Episodes of `num_examples` examples and a query, 64x64 px each, with an `Episode` as facts.

    Args:
        split: "train", "validation" or "test": other words, other scenes.
        num_records, seed: how many, and of everything.
        num_examples: before the query; a view or a task may show fewer.
        concepts: what words mean, some of CONCEPTS, each as often as the others.
        languages: of words and questions.
        told: objects are named ("A red circle.") instead of shown: a first lesson in words, which are shorter.
        asking: how episodes ask, some of ASKING, each as often as the others; "bare" is for told ones alone.

    Raises ValueError for unknown names and for pictures without a question, IndexError outside the records.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        num_examples: int = 8,
        concepts: tuple[str, ...] | list[str] = CONCEPTS,
        languages: tuple[str, ...] | list[str] = LANGUAGES,
        told: bool = False,
        asking: tuple[str, ...] | list[str] = ASKING[:1],
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        named = (("concepts", concepts, CONCEPTS), ("languages", languages, LANGUAGES), ("ways of asking", asking, ASKING))
        for what, given, known in named:
            if not given or isinstance(given, str) or any(one not in known for one in given):
                raise ValueError(f"{what} are a list of some of {', '.join(known)}, not {given!r}")
        if "bare" in asking and not told:
            raise ValueError("asking=bare is for episodes that are told (told=true): a picture needs a question.")
        self.split, self.num_records, self.seed, self.num_examples = split, num_records, seed, num_examples
        self.concepts, self.languages, self.told = tuple(concepts), tuple(languages), told
        self.asking = tuple(asking)
        form = "told" if told else "shown"
        if self.asking != ASKING[:1]:
            form += f"/{'+'.join(self.asking)}"
        self.name = f"few_shot/{split}/{'+'.join((*self.concepts, *self.languages))}/{num_examples}/{form}"
        check_whole(self, 0, "num_records", "seed", "num_examples")

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return EpisodeRecord(self, index)


class EpisodeRecord(Record):
    """One episode as a dialogue, each question of which shows its own image, or names what it would show."""

    def __init__(self, world: FewShotWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", is_dialogue=True, _world=world, _index=index)

    @cached_property
    def facts(self) -> Episode:
        world: FewShotWorld = vars(self)["_world"]
        rng = make_generator(world.seed, STREAM + SPLITS.index(world.split), vars(self)["_index"], 0)
        return make_episode(world, rng)

    @cached_property
    def image(self) -> np.ndarray | None:
        return None if vars(self)["_world"].told else render(self.facts.scenes[0])

    @cached_property
    def others(self) -> tuple[RecordImage, ...]:
        scenes = () if vars(self)["_world"].told else self.facts.scenes[1:]
        return tuple(RecordImage(render(scene)) for scene in scenes)

    @property
    def num_images(self) -> int:
        world: FewShotWorld = vars(self)["_world"]
        return 0 if world.told else world.num_examples + 1

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        told = self.facts
        if vars(self)["_world"].told:
            texts = [f"{tell(scene, told.language)}{told.question}".strip() for scene in told.scenes]
            both = zip(texts, told.answers, strict=True)
            return tuple(Question(text, answer, told.concept, told.language) for text, answer in both)
        return tuple(
            Question(told.question, answer, told.concept, told.language, parts=(number, told.question))
            for number, answer in enumerate(told.answers)
        )


def make_episode(world: FewShotWorld, rng: np.random.Generator) -> Episode:
    """An episode: each picture shows either word's meaning, as a coin says, so that no answer follows from the others."""
    concept, language = choose(rng, world.concepts), choose(rng, world.languages)
    words = choose_words(language, world.split, rng)
    values = choose_values(concept, rng)
    named = words if rng.random() < 0.5 else words[::-1]
    question = choose(rng, TEMPLATES[language]).format(*named)
    if (asking := world.asking[0] if len(world.asking) == 1 else choose(rng, world.asking)) != "choice":
        question = choose(rng, OPEN_TEMPLATES[language]) if asking == "open" else ""
    scenes, answers = [], []
    for _ in range(world.num_examples + 1):
        which = int(rng.random() * 2)
        scenes.append(draw_scene([(choose(rng, tuple(SIZES)), *choose(rng, pairs_of(values[which])))], rng))
        answers.append(words[which])
    return Episode(concept, language, words, values, question, tuple(scenes), tuple(answers))


def tell(scene: Scene, language: str) -> str:
    """The one object of a scene in words: "A red circle. "."""
    named = name_look(describe(scene.objects[0], "colour"), language)
    return f"{'An' if named[0] in 'aeiou' else 'A'} {named}. " if language == "en" else f"{named}。"


def choose_values(concept: str, rng: np.random.Generator) -> tuple[Value, Value]:
    """Two meanings. Of pairs, half share their colour or their form."""
    if concept == "colour":
        one, other = shuffle(rng, tuple(COLOURS))[:2]
        return (one, None), (other, None)
    if concept == "form":
        one, other = shuffle(rng, FORMS)[:2]
        return (None, one), (None, other)
    first = choose(rng, TRAINING_PAIRS)
    others = [pair for pair in TRAINING_PAIRS if pair != first]
    near = [pair for pair in others if pair[0] == first[0] or pair[1] == first[1]]
    return first, choose(rng, near if rng.random() < 0.5 else others)


def pairs_of(value: Value) -> list[tuple[str, str]]:
    """The pairs of colour and form that a word with this meaning is right for."""
    return [pair for pair in TRAINING_PAIRS if value[0] in (None, pair[0]) and value[1] in (None, pair[1])]
