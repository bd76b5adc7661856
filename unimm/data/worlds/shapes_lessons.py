"""What is asked about the world of shapes: by benchmarks, by training, and by lessons for a model that lacks one skill."""

from dataclasses import dataclass

from unimm.data.worlds.scenes import ALIKE_WEIGHTS
from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.data.worlds.shapes_prompts import (
    ARRANGING,
    COUNTING,
    COUNTING_PAIRS,
    LOOSE,
    NAMING,
    PAIRING,
    PLACING,
    RELATING,
    TEACHING,
    PromptStyle,
)
from unimm.data.worlds.shapes_questions import CATEGORIES, WITH_PLACES


@dataclass(frozen=True)
class Lesson:
    """What is asked about scenes, and which scenes are shown.

    Why lessons: a Transformer that has never looked one thing up among several reads all their places and guesses: choosing by
    the name is no use before the place is fetched, and fetching it none before it is chosen. Answers that say the place right
    after the name teach both at once, soonest where everything is named in the same way (recipes/LOG.md).

    languages: of questions, in turn.
    prompt_languages: of what is asked of who draws.
    num_objects: of a scene, one of these; none: as it comes.
    alike: how often the objects of a scene are alike, as `scenes.ALIKE_WEIGHTS`; none: no two are.
    prompts: what is asked of who draws.
    """

    categories: tuple[str, ...]
    languages: tuple[str, ...] = LANGUAGES
    num_objects: tuple[int, ...] = ()
    alike: tuple[float, ...] = ALIKE_WEIGHTS
    prompts: PromptStyle = LOOSE
    prompt_languages: tuple[str, ...] = LANGUAGES


BENCHMARK = Lesson(CATEGORIES)
"""What benchmarks ask for, and training where nothing else is said."""

TEACHER = Lesson(WITH_PLACES, prompts=TEACHING)
"""What training may ask for: places, too."""

LESSONS = {
    "find_one_of_two": Lesson(("find_by_name",) * 6, ("en",), num_objects=(2,), alike=()),
    "find": Lesson(("find",) * 6 + ("place",) * 4, num_objects=(1, 2, 2, 3, 3, 4), alike=()),
    "relate": Lesson(("relation",) * 8, num_objects=(2, 2, 3, 4), alike=()),
    # English answers about shapes were wrong five times as often as Chinese ones, most of them about relations.
    "relate_in_english": Lesson(("relation",) * 8, ("en", "zh", "en"), num_objects=(2, 2, 3, 4), alike=()),
    "list_many": Lesson(CATEGORIES, num_objects=(3, 4)),
    # What is located are the phrases of a scene, whatever its lesson asks; here few scenes have one object or none.
    "locate": Lesson(CATEGORIES, num_objects=(0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4)),
    "match": Lesson(("match",) * 8),
    "put": Lesson(WITH_PLACES, prompts=PLACING),
    "name": Lesson(WITH_PLACES, prompts=NAMING),
    "arrange": Lesson(WITH_PLACES, num_objects=(2,), alike=(), prompts=ARRANGING),
    # Chinese names both things before it says how they lie to each other, so neither can be placed while it is read.
    "relate_in_chinese": Lesson(WITH_PLACES, num_objects=(2,), alike=(), prompts=RELATING, prompt_languages=("zh",)),
    "count": Lesson(WITH_PLACES, num_objects=(2, 3, 4), alike=(0.0, 0.5, 0.5), prompts=COUNTING),
    "pair": Lesson(WITH_PLACES, prompts=PAIRING),
    "count_pairs": Lesson(WITH_PLACES, num_objects=(2, 3, 4), alike=(0.0, 0.5, 0.5), prompts=COUNTING_PAIRS),
}
