"""Preferences in files: every form that is known becomes the pair that it means, and what prefers nothing is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import make_template

from unimm.data.partners import WithPartners
from unimm.data.preferences import Preference
from unimm.data.readers.preferences import LABELS, PreferenceJson, PreferenceTables
from unimm.data.records import Record
from unimm.sequence import Kind

ASK, CHOSEN, REJECTED = "What is it?", "a cat", "the dog"
USER = {"role": "user", "content": ASK}
FORMS: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": ASK, "chosen": CHOSEN, "rejected": REJECTED, "images": ["a.png"]},
    "turns": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASK}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": CHOSEN}]}],
        "rejected": [{"role": "assistant", "content": REJECTED}],
        "images": ["a.png"],
    },
    "implicit": {
        "chosen": [USER, {"role": "assistant", "content": CHOSEN}],
        "rejected": [USER, {"role": "assistant", "content": REJECTED}],
        "image": "a.png",
    },
    "implicit texts": {"chosen": f"{ASK} {CHOSEN}", "rejected": f"{ASK} {REJECTED}", "image": "a.png"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": f"<image>{ASK}"}],
        "chosen": {"from": "gpt", "value": CHOSEN},
        "rejected": {"from": "gpt", "value": REJECTED},
        "images": ["a.png"],
    },
    "ms-swift": {
        "messages": [USER, {"role": "assistant", "content": CHOSEN}],
        "rejected_response": REJECTED,
        "images": ["a.png"],
    },
    "RLHF-V": {"question": ASK, "chosen": CHOSEN, "rejected": REJECTED, "image": "a.png"},
    "RLHF-V on the hub": {
        "text": json.dumps({"question": ASK, "chosen": CHOSEN, "rejected": REJECTED}),
        "image": "a.png",
        "idx": 3,
    },
}
DRAWN: dict[str, dict[str, Any]] = {
    "HPDv2": {"prompt": "a cat", "image_path": ["b.png", "a.png"], "human_preference": [0, 1]},
    "ImageReward": {"prompt": "a cat", "images": ["b.png", "a.png", "c.png"], "rank": [3, 1, 2]},
    "Pick-a-Pic": {"caption": "a cat", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 1.0, "label_1": 0.0},
    "unimm": {
        "prompt": "a cat",
        "chosen_image": "a.png",
        "rejected_image": "b.png",
        "chosen_codes": [1],
        "rejected_codes": [2],
    },
}
LABELLED: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": ASK, "completion": CHOSEN, "label": True, "images": ["a.png"]},
    "turns": {"prompt": [USER], "completion": [{"role": "assistant", "content": CHOSEN}], "label": 1, "image": "a.png"},
    "ms-swift": {"messages": [USER, {"role": "assistant", "content": CHOSEN}], "label": True, "images": ["a.png"]},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": f"<image>{ASK}"}, {"from": "gpt", "value": CHOSEN}],
        "kto_tag": True,
        "images": ["a.png"],
    },
}
BAD = {
    "a prompt is a text or a list of turns, not 5": {"prompt": 5, "chosen": "a", "rejected": "b"},
    "a prompt is a text or a list of turns, not {'a': 1}": {"prompt": {"a": 1}, "completion": "a", "label": True},
    "'language' is a word": {"prompt": "a", "chosen": "a", "rejected": "b", "language": ["en"]},
    "a label is true or false, not 2": {**LABELLED["TRL"], "label": 2},
    "a 'completion' of a 'prompt', or one image of it": {"prompt": ASK, "label": False},
    "chosen' and 'rejected": {"prompt": ASK, "chosen": CHOSEN},
    "rejected answer is empty": {"prompt": ASK, "chosen": CHOSEN, "rejected": " "},
    "do not begin alike": {"chosen": "yes", "rejected": "no"},
    "same number, 0.5": {"caption": "x", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 0.5, "label_1": 0.5},
    "1 images are compared by": {"prompt": "x", "image_path": ["a.png"], "human_preference": [1, 0]},
    "give it a 'prompt'": {"image_path": ["a.png", "b.png"], "human_preference": [1, 0]},
    "is not there": {"prompt": ASK, "chosen": CHOSEN, "rejected": REJECTED, "image": "none.png"},
    "codes are a list": {**DRAWN["unimm"], "chosen_codes": "1 2"},
}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("preferences")
    for number, name in enumerate("abc"):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(folder / f"{name}.png")

    def write(*entries: dict[str, Any]) -> Path:
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in entries), encoding="utf-8")
        return path

    return write


def check_answers(record: Record) -> None:
    assert (record.questions[-1].text, record.questions[-1].answer, record.questions[-1].rejected) == (ASK, CHOSEN, REJECTED)
    assert str(record.image).endswith("a.png") or isinstance(record.image, bytes)
    chosen, rejected = Preference()(record, make_template(), np.random.default_rng(0)).sequences
    assert [segment.kind for segment in chosen.segments].count(Kind.PIXELS) == 1
    assert chosen.segments[:-1] == rejected.segments[:-1] and chosen.segments[-1] != rejected.segments[-1]


@pytest.mark.parametrize("form", FORMS)
def test_answers_of_every_form(write: Callable[..., Path], form: str) -> None:
    check_answers(PreferenceJson(write(FORMS[form]))[0])


@pytest.mark.parametrize("form", DRAWN)
def test_drawings_of_every_form(write: Callable[..., Path], form: str) -> None:
    record = PreferenceJson(write(DRAWN[form]))[0]
    assert record.prompts[0].text == "a cat"
    assert [str(one.image)[-5:] for one in record.images] == ["a.png", "b.png"]
    codes = [one.codes for one in record.images]
    assert all(one["default"].tolist() == [n + 1] for n, one in enumerate(codes)) if form == "unimm" else codes == [{}, {}]


@pytest.mark.parametrize("form", LABELLED)
def test_a_labelled_answer_stands_in_its_place(write: Callable[..., Path], form: str) -> None:
    for entry, place in ((LABELLED[form], 0), ({**LABELLED[form], next(k for k in LABELS if k in LABELLED[form]): False}, 1)):
        record = PreferenceJson(write(entry))[0]
        assert (record.questions[-1].text, record.questions[-1].answer, record.label) == (ASK, CHOSEN, not place)
        sequences = Preference()(record, make_template(), np.random.default_rng(0)).sequences
        learned = [any(one.learn for one in sequence.segments) for sequence in sequences]
        assert learned == [not place, bool(place)] and sequences[1 - place].length == 1


def test_a_labelled_drawing_and_its_partner(write: Callable[..., Path]) -> None:
    drawn = {"prompt": "a cat", "image": "a.png", "label": False, "codes": [1, 2, 3, 0]}
    other = {"prompt": "a dog", "image": "b.png", "label": True, "codes": [3, 3, 3, 3]}
    data = WithPartners(PreferenceJson(write(drawn, LABELLED["TRL"], other)))
    view, template = Preference(1.0, mismatched=True), make_template()
    empty, own, no_null, mismatched = view(data[0], template, np.random.default_rng(0)).sequences
    assert own == template.draw("a cat", np.array([1, 2, 3, 0])) and empty == no_null and empty.length == 1
    assert mismatched == template.draw("a cat", np.array([3, 3, 3, 3]))  # the answer between them is none of a drawing
    own, _, null, mismatched = view(data[2], template, np.random.default_rng(0)).sequences
    assert null == own.unconditioned(template.tokenizer.special.pad)
    assert mismatched == template.draw("a dog", np.array([1, 2, 3, 0]))
    assert len(view(data[1], template, np.random.default_rng(0)).sequences) == 2  # no other answer is there


@pytest.mark.parametrize("said", BAD)
def test_what_prefers_nothing_is_refused_with_its_line(write: Callable[..., Path], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        PreferenceJson(write(FORMS["TRL"], BAD[said]))[1]
    assert "line 2" in str(caught.value)


def test_tables_with_images_as_the_hub_keeps_them(write: Callable[..., Path], tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = (write(FORMS["TRL"]).parent / "a.png").read_bytes()
    rows = [{**FORMS["RLHF-V on the hub"], "image": {"bytes": image, "path": "a.png"}}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    data = PreferenceTables(tmp_path / "table.parquet")
    assert len(data) == 3
    record = data[2]
    assert record.questions[-1].rejected == REJECTED and len(record.images) == 1
