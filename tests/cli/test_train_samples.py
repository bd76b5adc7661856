"""What a training shows of itself: drawings below the images that their prompts describe, and captions."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from toys import Squares

from unimm.cli.train import sample
from unimm.data.image import crop, pixels_to_array
from unimm.data.records import Record
from unimm.eval.report.pictures import FRAME, GAP, MIN_SIDE
from unimm.inference.engine import Engine


class Book:
    """A logbook that keeps what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []

    def text(self, step: int, name: str, text: str) -> None:
        assert (step, name) == (7, "captions")
        self.texts.append(text)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        assert (step, name) == (7, "drawings")
        self.pictures.append(picture)


class Few:
    """The first squares, with one of them uncaptioned."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Record:
        record = Squares()[index]
        return Record(record.key, image=record.image) if index == 1 else record


def described(book: Book) -> list[int]:
    """The squares whose captions were sampled, in order. An untrained model writes anything, line breaks too."""
    places = {book.texts[0].find(f"{Squares()[index].captions[0].text}\n    -> "): index for index in range(len(Squares()))}
    return [places[place] for place in sorted(places) if place >= 0]


def sampled(engine: Engine, count: int, *datasets: Any) -> Book:
    mixture: Any = SimpleNamespace(sources=[SimpleNamespace(dataset=one) for one in datasets], max_bad=0.0)
    book: Any = Book()
    sample(engine, mixture, 7, book, count)
    return book


def test_no_picture_is_shown_twice_and_each_stands_above_its_drawing(tiny_engine: Engine) -> None:
    """Two sources of the same pictures, as `draw` and `talk` are."""
    book = sampled(tiny_engine, 8, Few(), Few())
    assert described(book) == [0, 2, 3] and book.texts[0].count("\n    -> ") == 3
    page = np.asarray(book.pictures[0])
    side = tiny_engine.bundle.image_tokenizer.image_size
    scale = -(-MIN_SIDE // side)
    for place, index in enumerate((0, 2, 3)):
        left = GAP + place * (side * scale + 2 * FRAME + GAP) + FRAME
        shown = page[GAP + FRAME :, left:][: side * scale : scale, : side * scale : scale]
        image = Squares()[index].image
        assert image is not None and np.array_equal(shown, pixels_to_array(crop(image, side)[None])[0])


def test_as_many_are_shown_as_are_asked_for(tiny_engine: Engine) -> None:
    assert described(sampled(tiny_engine, 2, Squares(), Few())) == [0, 1]
    assert described(sampled(tiny_engine, 5, Squares(), Few())) == [0, 1, 2, 3, 4]
    assert not sampled(tiny_engine, 2, [Record("alone")]).texts
