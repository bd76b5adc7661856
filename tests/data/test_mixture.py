"""The mixture: an endless stream that holds every source in its share, found at any number, the same in any process."""

import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Squares, make_mixture, make_template

from unimm.batch import collate
from unimm.data.image import look
from unimm.data.mixture import Mixture, Source, _key
from unimm.data.order import _orders, _shuffled
from unimm.data.records import Record
from unimm.data.template import Template
from unimm.data.views import Conversation, Drawing, PlainText
from unimm.sequence import Segment, Sequence

WEIGHTS = st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=1, max_size=6).filter(any)


def weighted(weights: list[float], weigh_by: str = "samples") -> Mixture:
    views = (PlainText(), Drawing())
    sources = [Source(f"source {number}", Squares(), views[number % 2], weight) for number, weight in enumerate(weights)]
    return Mixture(sources, make_template(), weigh_by=weigh_by)


@given(WEIGHTS, st.integers(0, 3000), st.integers(1, 40))
def test_the_stream_is_the_same_from_any_number_on(weights: list[float], start: int, count: int) -> None:
    mixture = weighted(weights)
    assert mixture.samples(start, count) == mixture.samples(0, start + count)[start:]


@given(WEIGHTS)
def test_any_stretch_holds_every_source_in_its_share(weights: list[float]) -> None:
    mixture = weighted(weights)
    samples = mixture.samples(0, 400)
    for source, weight in enumerate(weights):
        numbers = [number for chosen, number in samples if chosen == source]
        assert numbers == list(range(len(numbers))), "a source's samples come in order, none twice, none left out"
        for stop in (57, 250, 400):
            found = sum(chosen == source for chosen, _ in samples[:stop])
            assert abs(found - stop * weight / sum(weights)) < len(weights)


def test_shares_of_tokens() -> None:
    """A drawing takes about three times the positions of a text: as many tokens of both are three times the texts."""
    mixture = weighted([1.0, 1.0], "tokens")
    tokens = Counter()
    for sample in mixture.samples(0, 2000):
        tokens[sample[0]] += mixture.sequence(sample).length
    assert tokens[0] / tokens[1] == pytest.approx(1, abs=0.05)
    assert weighted([1.0, 1.0]).shares == [0.5, 0.5] and mixture.shares[0] > 0.6


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must not be negative, and one must be positive"):
        weighted(weights)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([], make_template())
    with pytest.raises(ValueError, match="'none'"):
        Mixture([Source("none", [], lambda *_: Sequence(()))], make_template())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="samples or tokens, not of 'bytes'"):
        weighted([1.0], "bytes")


def indexed() -> Mixture:
    """A mixture whose sequences tell which record they are of, and what their generator said."""

    def view(record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        return Sequence((Segment.text([int(record.key.split("/")[1]), *rng.integers(0, 2**40, 64)]),))

    return Mixture([Source("one", Squares(), view, 3.0), Source("two", Squares(), view, 1.0)], make_template())


def test_every_epoch_visits_every_record_once_in_another_order() -> None:
    mixture, length = indexed(), len(Squares())
    orders = []
    for epoch in range(4):
        order = [mixture.sequence((0, epoch * length + place)).segments[0].ids[0] for place in range(length)]
        assert sorted(order) == list(range(length))
        orders.append(order)
    orders.append([mixture.sequence((1, place)).segments[0].ids[0] for place in range(length)])
    assert len({tuple(order) for order in orders}) == 5, "epochs and sources are shuffled differently"


def test_no_two_samples_share_random_numbers() -> None:
    mixture = indexed()
    drawn = [number for source in (0, 1) for n in range(50) for number in mixture.sequence((source, n)).segments[0].ids[1:]]
    assert len(set(drawn)) == len(drawn) == 2 * 50 * 64


NAMES = ["talk 0 (squares/8)", "draw 0 (squares/7)", "talk 1 (squares/11)", "talk 2 (squares/6)", "text 0 (squares/3)"]
KEY = 18354566649304900299
"""Of the toy mixture, as another process has found them."""


def test_a_sample_is_the_same_in_any_process() -> None:
    mixture = make_mixture()
    there = pickle.loads(pickle.dumps(mixture))
    for sample in mixture.samples(10, 10):
        assert there.sequence(sample) == mixture.sequence(sample)
        assert there.name(sample) == mixture.name(sample)
    assert make_mixture(seed=1).sequence((0, 5)) != mixture.sequence((0, 5))
    names = [mixture.name(sample) for sample in mixture.samples(0, 5)]
    assert names == NAMES and _key(0, "talk", "view") == KEY, "what follows from names does not hang on Python's hashes"


class Closed(Squares):
    """Records whose images are files that nobody has."""

    def __getitem__(self, index: int) -> Record:
        whole = super().__getitem__(index)
        return Record(whole.key, "nobody/has/this.png", whole.captions, questions=whole.questions, text=whole.text)


def test_a_sequence_opens_no_image_until_it_is_asked_to() -> None:
    mixture = make_mixture()
    images = [
        segment.image
        for sample in mixture.samples(0, 40)
        for segment in mixture.sequence(sample).segments
        if segment.image is not None
    ]
    assert len(images) > 10 and all(callable(image.source) for image in images)
    shown = {look(Squares()[index].image, 16).tobytes() for index in range(len(Squares()))}
    assert {image.open().tobytes() for image in images} <= shown
    sources = [Source(source.name, Closed(), source.view, source.weight) for source in mixture.sources if source.name != "draw"]
    closed = Mixture(sources, mixture.template)
    talk = closed.sequence(closed.samples(0, 1)[0])
    assert talk.length > 4
    for opens in (talk.opened, lambda: collate([[talk]])):
        with pytest.raises(ValueError, match=r"this\.png"):
            opens()


def test_images_are_those_that_are_looked_at() -> None:
    mixture = make_mixture()
    looked_at = [mixture.sequence(sample).segments[1].pixels for sample in mixture.samples(0, 40) if sample[0] == 0]
    for image, expected in zip(islice(mixture.images(), 20), looked_at, strict=False):
        assert expected is not None and np.array_equal(image, expected)
    assert list(weighted([1.0, 1.0]).images()) == []


def test_tasks_come_in_a_ratio() -> None:
    """Whatever the sources weigh; within a task they keep their proportions."""
    sources = [*make_mixture().sources, Source("more", Squares(), Conversation(), 15.0)]
    mixture = Mixture(sources, make_template(), ratio={"understanding": 2, "text": 3, "drawing": 5})
    weights = dict(zip((source.name for source in sources), mixture.weights.at(0), strict=True))
    assert weights == pytest.approx({"talk": 0.5, "more": 1.5, "text": 3.0, "draw": 5.0})
    mixture = Mixture(sources, make_template(), ratio={"understanding": 1, "text": 0, "drawing": 3})
    names = [mixture.sources[sample[0]].name for sample in mixture.samples(0, 400)]
    assert {name: names.count(name) for name in set(names)} == {"talk": 25, "more": 75, "draw": 300}
    for ratio, match in (
        ({"understanding": 1, "text": 1, "drawing": 0}, r"asks for text, and no source teaches it.*ratio\.text=0"),
        ({"understanding": 1, "video": 1}, "each with its share"),
        ({"understanding": -1, "text": 0, "drawing": 2}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=match):
            Mixture([source for source in sources if source.name != "text"], make_template(), ratio=ratio)


class OwnTask(Drawing):
    """A view from outside, with a task of its own."""

    task = "editing"


def test_a_task_from_outside_has_a_share_in_a_ratio() -> None:
    sources = [Source("text", Squares(), PlainText(), 1.0), Source("edit", Squares(), OwnTask(), 4.0)]
    ratio = {"understanding": 0, "text": 1, "drawing": 0, "editing": 3}
    assert Mixture(sources, make_template(), ratio=ratio).weights.at(0) == [1.0, 3.0]
    with pytest.raises(ValueError, match="understanding, text, drawing, editing"):
        Mixture(sources, make_template(), ratio={"understanding": 0, "text": 1, "drawing": 0})


def test_orders_of_old_epochs_are_let_go() -> None:
    first = [_shuffled(1000, 7, 0).tolist(), _shuffled(1000, 7, 1).tolist()]
    for epoch in range(20):
        assert sorted(_shuffled(1000, 7, epoch)) == list(range(1000))
    assert len(_orders[1000, 7]) == 2
    assert [_shuffled(1000, 7, 0).tolist(), _shuffled(1000, 7, 1).tolist()] == first and first[0] != first[1]
