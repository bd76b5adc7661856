"""Phrases about drawn scenes: boxes hold what is drawn, and training shows no pair that is held out."""

import numpy as np

from unimm.data.worlds.scenes import HELD_OUT_PAIRS, Scene, render
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import fits, parse_caption
from unimm.data.worlds.shapes_phrases import box_of, mask_of, objects_of


def test_boxes_hold_what_is_drawn() -> None:
    for record in (ShapesWorld("test")[index] for index in range(30)):
        for item in record.facts.objects:
            alone = render(Scene((item,), record.facts.background))
            drawn = np.abs(alone.astype(int) - record.facts.background).max(-1) > 0
            ys, xs = np.nonzero(drawn)
            whole = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert np.abs(np.subtract(box_of(item), whole)).max() <= 1, item  # the soft edge
            ys, xs = np.nonzero(mask_of(item))
            assert box_of(item) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_a_phrase_by_look_means_all_that_fits_it() -> None:
    """Read by the reader of captions; and phrases of every kind are there."""
    kinds: dict[str, int] = {}
    for record in (ShapesWorld("test", lesson="locate")[index] for index in range(150)):
        assert len({one.text for one in record.phrases}) == len(record.phrases)
        for phrase in record.phrases:
            kinds[phrase.category] = kinds.get(phrase.category, 0) + 1
            assert (phrase.category == "none") == (not phrase.boxes) and (phrase.category != "several" or len(phrase.boxes) > 1)
            assert len(objects_of(phrase, record.facts)) == len(phrase.boxes)
            is_related = phrase.text.startswith("the shape") or phrase.text.endswith("的图形")
            looks = parse_caption(phrase.text)
            if phrase.category in ("one", "several", "none") and not is_related and looks:  # "red objects" is no look to it
                named = [item for item in record.facts.objects if fits(item, looks[0])]
                assert sorted(map(box_of, named)) == [*phrase.boxes], phrase
    assert {*kinds} == {"one", "several", "none", "extreme", "relation"} and min(kinds.values()) > 25, kinds


def test_no_phrase_of_training_names_a_pair_that_is_held_out() -> None:
    for world in (ShapesWorld("train"), ShapesWorld("train", lesson="locate")):
        for record in (world[index] for index in range(200)):
            for phrase in record.phrases:
                for text in (phrase.text, phrase.region):
                    assert not {(colour, form) for _, colour, form in parse_caption(text)} & {*HELD_OUT_PAIRS}, text
    shown = {one.region for index in range(60) for one in ShapesWorld("held_out")[index].phrases}
    assert any((colour, form) in HELD_OUT_PAIRS for text in shown for _, colour, form in parse_caption(text))
