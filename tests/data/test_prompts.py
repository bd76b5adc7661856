"""What a model is asked when it learns from its own answers."""

import numpy as np
import pytest
from PIL import Image

from unimm.data.prompts import QuestionPrompt
from unimm.data.records import Record, Text
from unimm.data.views import DESCRIBE


@pytest.mark.parametrize(("languages", "expected"), [(("en", "zh"), "en zh"), (("zh",), "zh"), ((), "en"), (("fr",), "en")])
def test_descriptions_are_asked_for_in_the_languages_of_the_captions(languages: tuple[str, ...], expected: str) -> None:
    captions = tuple(Text("words", language) for language in languages)
    record = Record("a", image=Image.new("RGB", (8, 8)), captions=captions, facts="scene")
    rng, view = np.random.default_rng(0), QuestionPrompt(captions=True)
    asked = [view.ask(record, rng) for _ in range(200)]
    assert {one.text for one in asked} == {words for language in expected.split() for words in DESCRIBE[language]}
    assert all(one.facts == "scene" and not one.draws and one.image is record.image for one in asked)
