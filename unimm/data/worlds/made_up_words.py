"""Made-up words, and a first lesson in taking them from a prompt: a list of words, said again.

To say a word that no training had, a model has to find it in its prompt and go on there (an induction head, Olsson et al. 2022,
arXiv 2209.11895). In few-shot episodes alone that comes late (recipes/LOG.md): few of their tokens follow from those before
them. Here all that is learned does.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from functools import cached_property

import numpy as np

from unimm.data.records import Question, Record
from unimm.data.worlds.comparisons import SPLITS, make_generator
from unimm.data.worlds.scenes import choose, shuffle
from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.runtime.number_checks import check_whole

STREAM = 300
"""Of the second word of a generator's key, as in the world of comparisons."""

HELD_OUT_WORDS = {
    "en": {
        "validation": "gax niv tolp besk fraz yulb dorv klem mipo saku".split(),  # noqa: SIM905 - a line each otherwise
        "test": "dax wug blick toma zup koba wif pilk jurd vaz tulv nork melu sifo".split(),  # noqa: SIM905
    },
    "zh": {
        "validation": "波托 科洛 米贝 菲索 托卡 洛努".split(),  # noqa: SIM905
        "test": "达科 乌格 贝吉 索维 卡基 努波 吉科 维米".split(),  # noqa: SIM905
    },
}
"""The words of the other splits: training never says one of them."""

SYLLABLES = (
    "b d f g h j k l m n p r s t v w y z bl dr fr gl kl kr pl sk sn st tr".split(),  # noqa: SIM905
    tuple("aeiou"),
    "b d f g k l m n p r s t v x z ck lk lp lv nd rd rk rv sk".split(),  # noqa: SIM905
)
"""What English words of training are made of: an onset, a vowel, and a coda or another syllable; about ten thousand. Of a short
list a model learns the words by heart instead of taking them from its prompt (recipes/LOG.md)."""

CHARACTERS = "米科菲波托努洛吉贝维索卡达乌格基拉尼莫塔鲁斯特伦皮萨柯沙蒂罗"
"""What Chinese words of training are made of, two each."""

REPEAT = {"en": ("", "Say again: ", "Repeat: "), "zh": ("", "再说一遍：", "请重复：")}
"""What stands before the words."""


class RepeatedWordsWorld:
    """Lists of made-up words, whose answer is the list itself; without pictures.

    split: "train", "validation" or "test": other words. num_records, seed: how many, and of everything.
    min_words, max_words: how long a list is. languages: of the words.

    Raises ValueError for unknown names, IndexError outside the records.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        min_words: int = 4,
        max_words: int = 20,
        languages: tuple[str, ...] | list[str] = LANGUAGES,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if not languages or isinstance(languages, str) or any(one not in LANGUAGES for one in languages):
            raise ValueError(f"languages are a list of some of {', '.join(LANGUAGES)}, not {languages!r}")
        self.split, self.num_records, self.seed, self.languages = split, num_records, seed, tuple(languages)
        self.min_words, self.max_words = min_words, max_words
        check_whole(self, 0, "num_records", "seed")
        check_whole(self, 1, "min_words")
        if max_words < min_words:
            raise ValueError(f"max_words is at least min_words, not {max_words} and {min_words}.")
        self.name = f"repeated_words/{split}/{'+'.join(self.languages)}/{min_words}-{max_words}"

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return _RepeatedWords(self, index)


class _RepeatedWords(Record):
    def __init__(self, world: RepeatedWordsWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", is_dialogue=True, _world=world, _index=index)

    @property
    def image(self) -> None:
        return None

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        world: RepeatedWordsWorld = vars(self)["_world"]
        rng = make_generator(world.seed, STREAM + SPLITS.index(world.split), vars(self)["_index"], 0)
        language = choose(rng, world.languages)
        count = int(rng.integers(world.min_words, world.max_words + 1))
        words = (" " if language == "en" else "").join(choose_word(language, world.split, rng) for _ in range(count))
        return (Question(choose(rng, REPEAT[language]) + words, words, "repeat", language),)


def choose_words(language: str, split: str, rng: np.random.Generator) -> tuple[str, str]:
    """Two words of a split that begin differently, so that the first letter says which is meant."""
    while True:
        one, other = (choose_word(language, split, rng) for _ in range(2))
        if one[0] != other[0]:
            return one, other


def choose_word(language: str, split: str, rng: np.random.Generator) -> str:
    """A word of a split; one of training is made up."""
    held = HELD_OUT_WORDS[language]
    if split in held:
        return choose(rng, held[split])
    while True:
        if language == "zh":
            word = "".join(shuffle(rng, CHARACTERS)[:2])
        else:
            onsets, vowels, codas = SYLLABLES
            ends = codas if rng.random() < 0.5 else [onset + vowel for onset in onsets[:18] for vowel in vowels]
            word = choose(rng, onsets) + choose(rng, vowels) + choose(rng, ends)
        if not any(word in words for words in held.values()):
            return word
