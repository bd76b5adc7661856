"""What a model is asked when it learns to locate, and that a prompt format without boxes says so."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_text_tokenizer
from PIL import Image

from unimm.data.boxes import BoxText, rewrite
from unimm.data.fit import fit_crop, fit_look
from unimm.data.grounding import GroundedDialogue, Grounding, size_of_boxes
from unimm.data.records import Phrase, Question, Record
from unimm.data.reframing import Reframed
from unimm.data.template import PromptFormat, Template
from unimm.data.worlds.shapes import ShapesWorld
from unimm.sequence import Kind, Sequence

TEMPLATE = Template(tiny_text_tokenizer(), PromptFormat(box_form="short", box_bins=64), image_size=64, num_positions=4)
FIT = fit_look((64, 64), 64)


def learned(sequence: Sequence) -> list[str]:
    """The answers."""
    return [TEMPLATE.tokenizer.decode(one.ids).strip() for one in sequence.segments if one.kind == Kind.TEXT and one.learn]


def test_answers_are_the_boxes_of_what_was_asked() -> None:
    """In either language, from one image; over many scenes all kinds of questions come up."""
    view, asked = Grounding(num_turns=4, points=0.2, regions=0.3), []
    for record in (ShapesWorld("train", lesson="locate")[index] for index in range(40)):
        sequence = view(record, TEMPLATE, np.random.default_rng(1))
        told = TEMPLATE.tokenizer.decode([i for one in sequence.segments if one.kind == Kind.TEXT for i in one.ids])
        assert sum(one.kind == Kind.PIXELS for one in sequence.segments) == 1 and len(learned(sequence)) <= 4
        places = {one.text: TEMPLATE.prompt_format.boxes.write(one.boxes, FIT) for one in record.phrases}
        for wording in (
            r"(?:Locate|Draw a box around) (.*?)\.\n\n.*?: (.*?)(?:$|: )",
            r"(?:定位|框出)(.*?)。\n\n.*?: (.*?)(?:$|: )",
        ):
            for phrase, answer in re.findall(wording, told):
                assert answer.startswith(places[phrase]), (phrase, answer)
                asked.append(phrase)
    assert len(asked) > 60


def test_regions_and_points() -> None:
    phrase = Phrase("the dog", ((16.0, 16.0, 32.0, 48.0),), "en", "a dog")
    record = Record("r", np.zeros((64, 64, 3), np.uint8), phrases=(phrase,))
    asked = {tuple(learned(Grounding(regions=1, points=0)(record, TEMPLATE, np.random.default_rng(i)))) for i in range(5)}
    assert asked == {("a dog",)}
    assert learned(Grounding(regions=0, points=1)(record, TEMPLATE, np.random.default_rng(0))) == ["24 32"]
    absent = replace(record, phrases=(Phrase("a cat"),))
    assert learned(Grounding(regions=0.5)(absent, TEMPLATE, np.random.default_rng(0))) == ["none"]


def test_boxes_are_of_the_picture_that_was_given() -> None:
    """A picture of another size than its record says, as data sets that were shrunk have it."""
    phrase = Phrase("the dog", ((160.0, 80.0, 320.0, 160.0),))
    record = Record("r", np.zeros((32, 64, 3), np.uint8), phrases=(phrase,), image_size=(640, 320))
    expected = BoxText("short", 64).write([(16, 24, 32, 32)], FIT)
    assert learned(Grounding(points=0, regions=0)(record, TEMPLATE, np.random.default_rng(0))) == [expected]


def test_an_image_of_another_shape_than_its_boxes_is_refused() -> None:
    """As where a file lies on its side (EXIF) and its boxes are of the pixels as they are stored."""
    phrase, exif, file = Phrase("the dog", ((10.0, 5.0, 30.0, 30.0),)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(file, "JPEG", exif=exif)
    turned = Record("r", file.getvalue(), phrases=(phrase,), image_size=(80, 40))
    with pytest.raises(ValueError, match=r"record r are of an image of 80x40 px, and its image is upright 40x80 px"):
        Grounding()(turned, TEMPLATE, np.random.default_rng(0))
    assert size_of_boxes(replace(turned, image_size=(121, 240))) == (121, 240), "a copy, rounded"
    with pytest.raises(ValueError, match="another shape"):
        Reframed([replace(turned, image_size=(400, 400))])[0]  # pyright: ignore[reportArgumentType]


def test_a_model_that_sees_codes_is_asked_for_what_it_sees() -> None:
    """The middle square of a picture; LLaVA's shares are of the padded square all the same."""
    seeing = Template(TEMPLATE.tokenizer, PromptFormat(box_form="short", box_bins=64, sees="codes"), 64, 4)
    at_edge, inside = Phrase("the cat", ((0.0, 0.0, 20.0, 20.0),)), Phrase("the dog", ((48.0, 16.0, 64.0, 48.0),))
    codes, rng = np.zeros(4, np.int64), np.random.default_rng(0)
    record = Record("r", np.zeros((64, 128, 3), np.uint8), phrases=(at_edge, inside), codes=codes)
    assert learned(Grounding(points=0, regions=0)(record, seeing, rng)) == ["16 16 32 47"]
    with pytest.raises(ValueError, match="no phrases"):
        Grounding()(replace(record, phrases=(at_edge,)), seeing, rng)
    fit = fit_crop((128, 64), 64)
    assert rewrite("[0.375, 0.375, 0.5, 0.625]", "llava", BoxText("short", 64), fit) == "16 16 32 47"
    with pytest.raises(ValueError, match=r"The box \(0, 0, 32, 32\) lies outside of the part"):
        rewrite("[0, 0.25, 0.25, 0.5]", "llava", BoxText("short", 64), fit)


def test_what_cannot_be_located_is_said() -> None:
    bare = Template(TEMPLATE.tokenizer, PromptFormat(), 64, 4)
    record, rng = ShapesWorld("test")[1], np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"not taught to locate, its prompt format writes no boxes"):
        Grounding()(record, bare, rng)
    with pytest.raises(ValueError, match="no phrases"):
        Grounding()(Record("r", record.image), TEMPLATE, rng)
    outside = Record("r", record.image, phrases=(Phrase("x", ((70.0, 0.0, 90.0, 9.0),)),))
    with pytest.raises(ValueError, match=r"record r, 'x': The box \(70, 0, 90, 9\) reaches out of the picture"):
        Grounding()(outside, TEMPLATE, rng)
    with pytest.raises(ValueError, match="exceed 1"):
        Grounding(points=0.6, regions=0.6)
    with pytest.raises(ValueError, match="form short or qwen"):
        PromptFormat(box_bins=64)


def test_conversations_with_boxes() -> None:
    """Of Qwen-VL's form; a text without any stays as it is."""
    question = Question("Where is <ref>the dog</ref>?", "<box>(250,250),(500,750)</box>")
    record = Record("r", np.zeros((64, 64, 3), np.uint8), questions=(question, Question("What?", "A dog")), is_dialogue=True)
    expected = BoxText("short", 64).write([(16, 16, 32, 48)], FIT)
    assert learned(GroundedDialogue()(record, TEMPLATE, np.random.default_rng(0))) == [expected, "A dog"]
    wrong = replace(record, questions=(replace(question, answer="<box>(9,9),(1,1)</box>"),))
    with pytest.raises(ValueError, match=r"Record r: The box .* has no area"):
        GroundedDialogue()(wrong, TEMPLATE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs one image"):
        GroundedDialogue()(Record("r", questions=(question,), is_dialogue=True), TEMPLATE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="qwen, internvl, llava"):
        GroundedDialogue("detr")
