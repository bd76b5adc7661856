"""What is asked about the world of shapes: by benchmarks, by training, and by lessons for a model that lacks one skill."""

from dataclasses import dataclass

from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.data.worlds.shapes_prompts import LOOSE, PLACING, TEACHING, PromptStyle
from unimm.data.worlds.shapes_questions import CATEGORIES, WITH_PLACES


@dataclass(frozen=True)
class Lesson:
    """What is asked about scenes, and which scenes are shown.

    Why lessons: a Transformer that has never looked one thing up among several reads all their places and guesses: choosing by
    the name is no use before the place is fetched, and fetching it none before it is chosen. Answers that say the place right
    after the name teach both at once, soonest where everything is named in the same way (recipes/LOG.md).

    num_objects: of a scene, one of these, and no two of one colour and form; none: scenes are as they come.
    prompts: what is asked of who draws.
    """

    categories: tuple[str, ...]
    languages: tuple[str, ...] = LANGUAGES
    num_objects: tuple[int, ...] = ()
    prompts: PromptStyle = LOOSE


BENCHMARK = Lesson(CATEGORIES)
"""What benchmarks ask for, and training where nothing else is said."""

TEACHER = Lesson(WITH_PLACES, prompts=TEACHING)
"""What training may ask for: places, too."""

LESSONS = {
    "find_one_of_two": Lesson(("find_by_name",) * 6, ("en",), num_objects=(2,)),
    "find": Lesson(("find",) * 6 + ("place",) * 4, num_objects=(1, 2, 2, 3, 3, 4)),
    "relate": Lesson(("relation",) * 8, num_objects=(2, 2, 3, 4)),
    "put": Lesson(WITH_PLACES, prompts=PLACING),
}
