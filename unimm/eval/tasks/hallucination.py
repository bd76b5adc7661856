"""Object hallucination on the world of shapes: what a model says of a picture that is not in it.

    unimm eval --task hallucination                    captions, after CHAIR (`unimm.eval.scorers.hallucination`)
    unimm eval --task "hallucination?ask=questions"    yes or no, after POPE (arXiv 2305.10355)
    unimm eval --task "hallucination?votes=5"          the same after votes; "?verify=true": after looking again

POPE asks about three objects that are there and three that are not, chosen in three ways, each harder than the one before:

    random        any that is not there
    popular       those that most scenes show
    adversarial   those that most often stand beside what this scene shows

An object is a colour and a form, as "a red circle"; scenes of nothing are left out. How often objects are shown, and together,
is counted in the first scenes of the split. Both languages are asked in turn.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from unimm.data.worlds.scenes import HELD_OUT_PAIRS, TRAINING_PAIRS, Scene, choose, make_generator, make_scene
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_claims import ask_for_claim, name_claims
from unimm.data.worlds.shapes_language import LANGUAGES, fits, parse_caption
from unimm.data.worlds.shapes_questions import ANSWERS, TEMPLATES, name_look
from unimm.eval.score import Score, wilson_interval
from unimm.eval.scorers.hallucination import Chair, Mentions, match
from unimm.eval.scorers.yes_no import NO, YES
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answers import as_array, find_checks, is_same_answer, set_checks
from unimm.eval.tasks.question_files import STRATEGIES, yes_no_result
from unimm.eval.tasks.shapes import describe_record, name_shapes
from unimm.inference.engine import Engine
from unimm.inference.second_look import Verification

NUM_COUNTED = 500
"""Scenes in which it is counted how often objects are shown."""

PER_SCENE = 2 * len(STRATEGIES)
"""Questions about a scene: of each strategy one about what is there, and one about what is not."""

LOOK_AGAIN = Verification(claims=name_claims, questions=ask_for_claim)
"""Claims as the judge reads them, asked for as this world asks."""

Pair = tuple[str, str]
"""A colour and a form."""


class ShapesHallucination(ItemTask):
    """Captions that name nothing that is not there; beside it CHAIRi, CHAIRs, recall, and F1 of the objects that are named.

    An object that is named has to be there with all that is said of it; `form_...` look at its form alone, as CHAIR does.
    votes, verify: how captions are asked for (`unimm.inference.second_look`).
    """

    def __init__(self, num_items: int = 300, seed: int = 0, split: str = "test", votes: int = 1, verify: bool = False) -> None:
        set_checks(self, votes, verify)
        self.name = "hallucination" if split == "test" else f"hallucination_{split}"
        self.num_items, self.seed, self.split = num_items, seed, split
        self._world = ShapesWorld(split, num_items, seed)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these scenes."""
        captions: dict[int, str] = {}
        for turn, language in enumerate(LANGUAGES):
            own = [item for item in items if item % len(LANGUAGES) == turn]
            images = [self._world[item].image for item in own]
            captions |= dict(zip(own, engine.caption(images, language=language, **find_checks(self, LOOK_AGAIN)), strict=True))
        for item in items:
            record, caption = self._world[item], captions[item]
            category, _ = describe_record(record)
            looks, objects = parse_caption(caption), list(record.facts.objects)
            whole = match(looks, objects, lambda look, shape: fits(shape, look))
            forms = match(looks, objects, lambda look, shape: look[2] in (None, shape.form))
            yield Example(
                key=record.key,
                prompt="",
                expected=name_shapes(record.facts.objects),
                answer=caption,
                correct=not whole.invented,
                reason=f"names {whole.invented} too many" if whole.invented else "",
                category=category,
                language=LANGUAGES[item % len(LANGUAGES)],
                image=as_array(record),
                numbers={
                    "named": whole.named, "there": whole.there, "matched": whole.matched, "matched_forms": forms.matched,
                },
            )  # fmt: skip

    def score(self, examples: list[Example]) -> Result:
        """The share of captions that invent nothing, and CHAIR's shares."""
        others: dict[str, Score] = {}
        for prefix, part in (("", "matched"), ("form_", "matched_forms")):
            mentions = [Mentions(*(int(example.numbers[name]) for name in ("named", "there", part))) for example in examples]
            chair = Chair.of(mentions)
            named, there = sum(one.named for one in mentions), sum(one.there for one in mentions)
            others[f"{prefix}chair_i"] = _share(chair.chair_i, named, False)
            others[f"{prefix}chair_s"] = _share(chair.chair_s, len(mentions), False)
            others[f"{prefix}recall"] = _share(chair.recall, there, True)
            precise = 1 - chair.chair_i
            f1 = 2 * precise * chair.recall / max(precise + chair.recall, 1e-9)
            others[f"{prefix}f1"] = Score(f1, named, None)
        return summarize(self.name, examples, other_scores=others)


class ShapesPope(ItemTask):
    """Questions whether an object is there, half of which it is; accuracy, and POPE's other four numbers, by strategy.

    votes, verify: how answers are asked for (`unimm.inference.second_look`).
    """

    def __init__(self, num_items: int = 600, seed: int = 0, split: str = "test", votes: int = 1, verify: bool = False) -> None:
        set_checks(self, votes, verify)
        self.name = "hallucination_questions" if split == "test" else f"hallucination_questions_{split}"
        self.num_items, self.seed, self.split = num_items, seed, split
        self._world = ShapesWorld(split, 10**9, seed)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these questions."""
        asked = [self._question(item) for item in items]
        records = [self._world[scene] for scene, *_ in asked]
        images, texts = [record.image for record in records], [text for _, text, *_ in asked]
        answers = engine.answer(images, texts, max_new_tokens=8, **find_checks(self, LOOK_AGAIN))
        for (scene, text, label, strategy, language), record, answer in zip(asked, records, answers, strict=True):
            said = next((word for word in (YES, NO) if is_same_answer(answer, ANSWERS[language][word])), "")
            yield Example(
                key=f"shapes/{self.split}/{scene}/{strategy}/{label}",
                prompt=text,
                expected=label,
                answer=answer,
                correct=said == label,
                reason="" if said == label else f"read as {said or 'neither'}",
                category=strategy,
                language=language,
                image=as_array(record),
                numbers={"said_yes": float(said == YES), "said_no": float(said == NO)},
            )

    def score(self, examples: list[Example]) -> Result:
        """POPE's five numbers."""
        return yes_no_result(
            self.name, examples, lambda one: YES if one.numbers["said_yes"] else NO if one.numbers["said_no"] else None
        )

    def _question(self, item: int) -> tuple[int, str, str, str, str]:
        """(scene, question, label, strategy, language) of an item."""
        scene = self._scene(item // PER_SCENE)
        turn = item % PER_SCENE
        strategy, label = STRATEGIES[turn // 2], (YES, NO)[turn % 2]
        language = LANGUAGES[(item // PER_SCENE + turn // 2) % len(LANGUAGES)]
        shown = pairs_of(make_scene(self.seed, self.split, scene))
        rng = make_generator(self.seed, self.split, item, "questions")
        pair = choose(rng, shown) if label == YES else self._absent(strategy, shown, choose(rng, absent_from(shown)))
        named = name_look((None, *pair), language)
        if language == "en":
            named = f"{'an' if named[0] in 'aeiou' else 'a'} {named}"
        return scene, TEMPLATES[language]["existence"][0].format(named), label, strategy, language

    def _absent(self, strategy: str, shown: list[Pair], otherwise: Pair) -> Pair:
        """An object that is not there. otherwise: any such, which "random" takes."""
        scenes, together = self._counts
        if strategy == "random":
            return otherwise
        counts = scenes if strategy == "popular" else sum((together[pair] for pair in shown), Counter())
        return max(absent_from(shown), key=lambda pair: counts[pair])

    def _scene(self, number: int) -> int:
        """The index of scene `number` of those that show something."""
        found = self._shown
        index = found[-1] if found else -1
        while len(found) <= number:
            index += 1
            if make_scene(self.seed, self.split, index).objects:
                found.append(index)
        return found[number]

    @cached_property
    def _shown(self) -> list[int]:
        """Indices of scenes that show something, as far as they were looked for."""
        return []

    @cached_property
    def _counts(self) -> tuple[Counter[Pair], dict[Pair, Counter[Pair]]]:
        """In how many scenes every object is shown, and together with which others."""
        scenes: Counter[Pair] = Counter()
        together: dict[Pair, Counter[Pair]] = {pair: Counter() for pair in (*TRAINING_PAIRS, *HELD_OUT_PAIRS)}
        for index in range(NUM_COUNTED):
            shown = pairs_of(make_scene(self.seed, self.split, index))
            scenes.update(shown)
            for pair in shown:
                together[pair].update(other for other in shown if other != pair)
        return scenes, together


def hallucination(
    ask: str = "captions",
    num_items: int | None = None,
    seed: int = 0,
    split: str = "test",
    votes: int = 1,
    verify: bool = False,
) -> ItemTask:
    """The task by what it asks for: "captions" or "questions"; votes, verify: how. ValueError: something else."""
    kinds = {"captions": ShapesHallucination, "questions": ShapesPope}
    if ask not in kinds:
        raise ValueError(f"hallucination asks for {' or '.join(kinds)}, not '{ask}'.")
    return kinds[ask](
        **({} if num_items is None else {"num_items": num_items}), seed=seed, split=split, votes=votes, verify=verify
    )


def pairs_of(scene: Scene) -> list[Pair]:
    """The objects of a scene, each look once, in a fixed order."""
    return sorted({(item.colour, item.form) for item in scene.objects})


def absent_from(shown: list[Pair]) -> list[Pair]:
    """The objects that scenes of training show, and this one does not."""
    return [pair for pair in TRAINING_PAIRS if pair not in shown]


def _share(value: float, count: int, higher_is_better: bool) -> Score:
    return Score(value, count, wilson_interval(value, max(count, 1)), higher_is_better=higher_is_better)
