"""Votes and looking again: what most drafts say is said, what is not there is left out, and nothing else changes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unimm.inference import second_look
from unimm.inference.engine import Engine
from unimm.inference.examples import ImageQuestion
from unimm.inference.second_look import CheckedText, SecondLook, Verification
from unimm.sequence import Segment


class Name(str):
    """An image, as its name."""

    opened = str.__str__


class Asked(tuple):
    """A sequence: the image and the question."""

    length = 9


class Scripted:
    """An engine that writes given drafts and says yes to what is there; `asked` are its questions, an image being its name.

    there: phrases by image. drafts: by image, in turn.
    """

    deterministic = False
    decoder = tokenizer = None
    model = SimpleNamespace(config=SimpleNamespace(max_positions=9))

    def __init__(self, there: dict[str, set[str]], drafts: dict[str, list[str]]) -> None:
        self.there, self.drafts = there, {name: iter(texts) for name, texts in drafts.items()}
        self.asked: list[str] = []
        self.temperatures: list[float] = []
        self.template = SimpleNamespace(chat=self._chat)

    @staticmethod
    def _chat(turns, limit):
        image, *_, question = turns[0].content
        return SimpleNamespace(opened=lambda: Asked((*image, question)))

    def write(self, decoder, tokenizer, requests, stop):
        self.temperatures += [request.sampling.temperature for request in requests]
        return [SimpleNamespace(text=next(self.drafts[request.sequence[0]])) for request in requests]

    def probability_of_yes(self, model, tokenizer, sequences, alone, words):
        self.asked += [question for _, question in sequences]
        return [0.9 if any(phrase in question for phrase in self.there[name]) else 0.1 for name, question in sequences]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    def make(there: dict[str, set[str]], drafts: dict[str, list[str]]) -> Scripted:
        engine = Scripted(there, drafts)
        monkeypatch.setattr(second_look, "write", engine.write)
        monkeypatch.setattr(second_look, "probability_of_yes", engine.probability_of_yes)
        return engine

    return make


def look(engine: Scripted, question: str = "Describe.", num_images: int = 1, **settings) -> CheckedText:
    """The text of the one image that the script has."""
    image: Any = tuple(map(Name, engine.there))
    return SecondLook(engine, 8, **settings).texts([ImageQuestion((image,) * num_images, question)])[0]  # type: ignore[arg-type]


def test_most_votes_win_and_the_usual_answer_where_they_tie(script) -> None:
    engine = script({"x": set()}, {"x": ["Three", "two", " Two.", "the two", "four"]})
    found = look(engine, "How many?", votes=5)
    assert (found.text, found.agreement, found.passes) == ("two", 0.6, 5)
    assert engine.temperatures == [0.0] + [0.7] * 4 and not engine.asked
    tied = look(script({"x": set()}, {"x": ["three", "two", "two", "three"]}), "How many?", votes=4, temperature=0.2)
    assert (tied.text, tied.agreement) == ("three", 0.5)


def test_captions_vote_on_what_they_say_is_there(script) -> None:
    """The one that is nearest to the majority is taken, and loses what only it says."""
    drafts = ["A dog and a cat.", "There is a dog and a red ball.", "A red ball next to a dog and a bird."]
    found = look(script({"x": set()}, {"x": drafts}), votes=3, is_caption=True)
    assert found.text == "There is a dog and a red ball." and found.agreement == pytest.approx((0.5 + 0.8) / 2)
    drafts = ["A dog and a cat.", "A dog and a bird.", "A dog and a horse."]
    found = look(script({"x": set()}, {"x": drafts}), votes=3, is_caption=True)
    assert found.text == "A dog." and found.removed == ("a cat",)


def test_a_draft_without_failing_claims_stays_and_is_asked_for_once(script) -> None:
    engine = script({"x": {"a dog", "a ball"}}, {"x": ["A dog with a ball."]})
    found = look(engine, verify=True, is_caption=True)
    assert found.text == "A dog with a ball." and found.removed == () and len(found.drafts) == 1
    assert found.passes == 1 + len(engine.asked) == 1 + 2 * 2 + 1 and found.whole == pytest.approx(0.9)
    assert [claim.text for claim in found.claims] == ["a dog", "a ball"]


def test_what_is_too_long_to_be_asked_stands(script) -> None:
    engine = script({"x": set()}, {"x": ["A dog."]})
    engine.model = SimpleNamespace(config=SimpleNamespace(max_positions=8))
    with pytest.warns(UserWarning, match="2 claims or captions stand unchecked"):
        found = look(engine, verify=True, is_caption=True)
    assert found.text == "A dog." and found.removed == found.claims == () and found.whole is None and not engine.asked
    engine.drafts["x"] = iter(["Yes"])
    with pytest.warns(UserWarning, match="unchecked"):
        assert look(engine, "Is there a cat?", verify=True).text == "Yes"


def test_a_better_draft_is_taken_where_claims_fail(script) -> None:
    drafts = ["A dog and a cat.", "A bird.", "A dog and a ball.", "A cat.", "A cat."]
    found = look(script({"x": {"dog", "ball"}}, {"x": drafts}), verify=True, is_caption=True)
    assert found.text == "A dog and a ball." and found.drafts == tuple(drafts)


def test_what_fails_in_every_draft_is_left_out(script) -> None:
    drafts = ["A dog and a cat sit here. A lamp.", "A cat and a horse.", "A cat.", "A bird.", "A cat."]
    found = look(script({"x": {"a dog", "a lamp"}}, {"x": drafts}), verify=True, is_caption=True)
    assert found.text == "A dog. A lamp." and found.removed == ("a cat",)
    none = look(script({"x": set()}, {"x": ["A cat."] * 5}), verify=True, is_caption=True)
    assert none.text == "A cat." and none.claims[0].probability < 0.5  # something has to be said


def test_yes_and_no_are_checked_in_other_words(script) -> None:
    """The question itself counts as one wording, and other questions are left as they are."""
    engine = script({"x": {"see a dog"}}, {"x": ["Yes", "yes", "red"]})
    settings = Verification(questions=("Do you see {a}?", "Can you see {a}?"))
    found = look(engine, "Is there a dog?", verify=settings)
    assert engine.asked == ["Is there a dog?", "Do you see a dog?", "Can you see a dog?"]
    assert found.text == "Yes" and found.claims[0].probability == pytest.approx(1 / (1 + 9 ** (-1 / 3)))
    assert look(engine, "Is there a cat in the image?", verify=True).text == "no"
    assert look(engine, "What colour is the ball?", verify=True).passes == 1


def test_questions_that_say_more_or_show_more_are_left_as_they_are(script) -> None:
    engine = script({"x": set()}, {"x": ["Yes"] * 5})
    for question in ("Is there a dog on the left?", "Is there a dog in the first image?", "Are there more than two dogs?"):
        assert look(engine, question, verify=True).text == "Yes"
    assert look(engine, "Is there a dog?", num_images=2, verify=True).text == "Yes" and not engine.asked


def test_what_votes_removed_is_told_after_looking_again(script) -> None:
    drafts = ["A dog and a cat.", "A dog and a bird.", "A dog and a horse."]
    for check in (False, True):
        found = look(script({"x": {"dog"}}, {"x": drafts}), votes=3, verify=check, is_caption=True)
        assert found.text == "A dog." and found.removed == ("a cat",)


def test_a_detector_may_say_what_is_there(script) -> None:
    """In place of questions."""
    engine, seen = script({"x": set()}, {"x": ["A dog and a cat.", "A dog.", "A cat.", "A cat.", "A cat.", "Yes."]}), []
    detector = Verification(
        shown=lambda image, claims: seen.append((image, claims)) or ["dog" in one for one in claims], whole=False
    )
    assert look(engine, verify=detector, is_caption=True).text == "A dog." and seen[0] == (None, ["a dog", "a cat"])
    assert look(engine, "Is there a cat?", verify=detector).text == "no" and not engine.asked


def test_a_detector_sees_the_image_as_it_was_given(tiny_engine: Engine, picture) -> None:
    """And what it says is checked."""
    told: list = []
    find = Verification(claims=lambda text: ["a dog"], shown=lambda image, claims: told.append(image) or [1.0])
    tiny_engine.caption(picture, max_new_tokens=3, verify=find)
    assert told == [picture]
    with pytest.raises(ValueError, match="for each of 1 claims"):
        tiny_engine.caption(picture, max_new_tokens=3, verify=Verification(claims=lambda text: ["a"], shown=lambda *_: [2.0]))


def test_a_picture_is_opened_once_for_all_questions(tiny_engine: Engine, picture) -> None:
    opened, look_at = [], tiny_engine.template.pixels(picture).pixels

    def open_it():
        opened.append(1)
        return look_at

    segment = Segment.look(open_it, tiny_engine.template.num_positions, condition="image")
    check = Verification(claims=lambda text: ["a dog", "a cat"])
    found = SecondLook(tiny_engine, 3, verify=check, is_caption=True).texts([ImageQuestion(((segment,),), "Describe.")])[0]
    assert found.passes >= 6 and len(opened) == 1


def test_bad_settings_say_what_to_do(tiny_engine: Engine, picture) -> None:
    for wrong, words in (
        ({"votes": 0}, "votes"),
        ({"verify": "yes"}, "verify is True"),
        ({"votes": 3, "temperature": -1.0}, "temperature must be"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_engine.answer(picture, "What?", max_new_tokens=2, **wrong)
    for questions in (("Is it there?",), "Is {a} {there}?", "Is {a} {0}?", ("Is {a}?", 3)):
        with pytest.raises(ValueError, match="claim stands"):
            Verification(questions=questions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="questions are patterns"):
        Verification(questions=())


def test_a_function_gives_one_question_or_several(script) -> None:
    engine = script({"x": {"dog"}}, {"x": ["A dog.", "A dog."]})
    look(engine, verify=Verification(questions=lambda claim: f"See {claim}?", whole=False))
    assert engine.asked == ["See a dog?"]
    with pytest.raises(ValueError, match="one question or several"):
        look(engine, verify=Verification(questions=lambda claim: []))


def test_one_vote_and_no_look_is_the_plain_call(tiny_engine: Engine, picture) -> None:
    plain = tiny_engine.caption(picture, max_new_tokens=8)
    told = tiny_engine.caption(picture, max_new_tokens=8, details=True)
    assert told == CheckedText(plain, (plain,)) and tiny_engine.caption(picture, max_new_tokens=8, votes=1) == plain


def test_many_images_are_looked_at_as_each_alone(tiny_engine: Engine) -> None:
    """Votes and checks of a batch are those of its parts: noise goes by (seed, number of the draft)."""
    images = [np.full((16, 16, 3), 40 * number, np.uint8) for number in range(3)]
    settings = {"max_new_tokens": 6, "votes": 3, "verify": Verification(claims=lambda text: text.split()[:2]), "seed": 5}
    together = tiny_engine.caption(images, details=True, **settings)
    alone = [tiny_engine.caption(image, details=True, **settings) for image in images]
    assert [one.text for one in together] == [one.text for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.drafts == other.drafts and one.passes == other.passes
        assert [claim.probability for claim in one.claims] == pytest.approx(
            [claim.probability for claim in other.claims], abs=1e-4
        )
    assert together[0].drafts[0] == tiny_engine.caption(images[0], max_new_tokens=6)
