"""The view of edits: the target is learned, changed codes count more, and each condition is dropped as often as it says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import make_template

from unimm.data.edit_view import Edit
from unimm.data.prompt_format import PromptFormat
from unimm.data.records import ImageEdit, Record, RecordImage, Text
from unimm.data.template import Template
from unimm.sequence import Expected, Kind, Sequence

SOURCE, TARGET = np.array([3, 1, 4, 1]), np.array([3, 1, 5, 1])
PICTURE = np.zeros((16, 16, 3), dtype=np.uint8)
RECORD = Record(
    "one",
    image=PICTURE,
    codes=SOURCE,
    others=(RecordImage(PICTURE, {"default": TARGET}),),
    edits=(ImageEdit((Text("make it red"),)),),
)
TOY = make_template()
TEMPLATE = Template(TOY.tokenizer, PromptFormat(edits="codes_last"), TOY.image_size, TOY.num_positions)


def view(record: Record = RECORD, seed: int = 0, template: Template = TEMPLATE, **words: Any) -> Sequence:
    return Edit(**{"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0, **words})(
        record, template, np.random.default_rng(seed)
    )


def test_what_is_learned_is_the_target() -> None:
    sequence = view()
    given, learned = [segment for segment in sequence.segments if segment.kind == Kind.CODES]
    assert given.ids == tuple(SOURCE) and learned.ids == tuple(TARGET) and learned.learn and learned.weight == 1.0
    assert sequence == TEMPLATE.edit(PICTURE, SOURCE, "make it red", TARGET)
    weighted = view(changed_weight=3.0).segments[-1]
    assert isinstance(weighted.weight, np.ndarray) and weighted.weight.tolist() == [1.0, 1.0, 3.0, 1.0]


def test_conditions_are_dropped_as_often_as_it_says() -> None:
    found = {"none": 0, "text": 0, "image": 0, "both": 0}
    pad = TEMPLATE.tokenizer.special.pad
    forms = {
        "none": view(),
        "text": view().unconditioned(pad),
        "image": view().unconditioned(pad, {"image"}),
        "both": view().unconditioned(pad, {"text", "image"}),
    }
    for seed in range(400):
        sequence = view(seed=seed, drop_text=0.3, drop_image=0.2, drop_both=0.1)
        found[next(name for name, form in forms.items() if form == sequence)] += 1
    assert all(abs(count / 400 - share) < 0.08 for count, share in zip(found.values(), (0.4, 0.3, 0.2, 0.1), strict=True))


def test_what_the_source_has_is_expected() -> None:
    """The model's own prompt format says how much; without the source, or without such a model, nothing is expected."""
    template = Template(TOY.tokenizer, replace(TEMPLATE.prompt_format, source_bias=5.0), TOY.image_size, TOY.num_positions)
    sequence = view(template=template, changed_weight=2.0)
    assert sequence.segments[-1].expected == Expected(tuple(SOURCE), 5.0)
    assert isinstance(sequence.segments[-1].weight, np.ndarray)
    assert template.edit(PICTURE, SOURCE, "make it red", num_codes=4).segments[-1].expected is None  # a request says it
    assert view(template=template, drop_text=1.0).segments[-1].expected is not None
    assert view(template=template, drop_image=1.0).segments[-1].expected is None
    assert view(template=template, drop_both=1.0).segments[-1].expected is None
    assert view().segments[-1].expected is None


def test_codes_are_kept_where_the_images_are_the_same() -> None:
    """Of 4 x 4 patches those whose pixels differ by more than it says, and the ones around them, have the target's codes."""
    size, before, after = TOY.image_size, np.arange(16), np.arange(16, 32)
    first, second = (np.full((size, size, 3), 100, dtype=np.uint8) for _ in range(2))
    second[0, 0] += 9  # in the first patch
    second[-1, -1] += 4  # too little
    record = Record("r", image=first, codes=before, others=(RecordImage(second, {"default": after}),), edits=RECORD.edits)
    for within, changed in ((4, [0, 1, 4, 5]), (9, []), (3, [0, 1, 4, 5, 10, 11, 14, 15])):
        learned = view(record, same_within=within, changed_weight=2.0).segments[-1]
        assert [place for place, one in enumerate(learned.ids) if one == after[place]] == changed
        assert set(learned.ids) <= {*before, *after} and np.flatnonzero(learned.weight == 2.0).tolist() == changed
    assert view(record).segments[-1].ids == tuple(after)


def test_mistakes_end_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Edit(drop_text=0.5, drop_image=0.5, drop_both=0.5)
    with pytest.raises(ValueError, match="changed_weight"):
        Edit(changed_weight=0.0)
    with pytest.raises(ValueError, match="same_within"):
        Edit(same_within=-1)
    with pytest.raises(ValueError, match="square grids"):
        view(
            Record(
                "odd",
                image=PICTURE,
                codes=SOURCE[:3],
                others=(RecordImage(PICTURE, {"default": TARGET[:3]}),),
                edits=RECORD.edits,
            ),
            same_within=4,
        )
    with pytest.raises(ValueError, match="source_bias is from 0"):
        PromptFormat(edits="codes_last", source_bias=-1.0)
    with pytest.raises(ValueError, match="has no edits"):
        view(Record("two", image=PICTURE, codes=SOURCE))
    with pytest.raises(ValueError, match="CodedDataset"):
        view(Record("three", image=PICTURE, others=(RecordImage(PICTURE),), edits=RECORD.edits))
    with pytest.raises(ValueError, match=r"trainer\.num_positions"):
        view(template=TEMPLATE.limited(20))
    with pytest.raises(ValueError, match="not taught to edit"):
        view(template=TOY)
