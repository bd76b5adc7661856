"""Every format gives back what was written into it, images byte for byte; what it cannot hold is refused before anything is
written, broken records are left out by the budget, and a conversion that was killed goes on."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from users_files import (
    TURNS,
    make_image_folder,
    make_llava,
    make_parquet,
    make_pictures,
    make_shard,
    picture_bytes,
    write_lines,
)

from unimm.cli.compose import compose_config
from unimm.cli.data import named_datasets
from unimm.data.conversion.entries import image_file
from unimm.data.conversion.format import FORMATS
from unimm.data.conversion.run import ConversionConfig, Converted, convert
from unimm.data.image import decode_image
from unimm.data.inspection.measure import encoded_bytes
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import Dataset, Record, Text
from unimm.runtime.resumable_folder import ResumableFolder

QUIET: Any = lambda *_: nullcontext(lambda _: None)  # noqa: E731


def to(name: str, dataset: Dataset, out: Path, **changes: Any) -> Converted:
    return convert(dataset, out, ConversionConfig(name, **changes), QUIET)


def read(made: Converted) -> Dataset:
    """What was written, opened with the words that the conversion tells."""
    (dataset,) = named_datasets(compose_config("data_inspect", made.overrides)).values()
    return dataset


def told(record: Record) -> dict[str, Any]:
    """All that a record says, but for its key; images as their bytes."""
    names = ("captions", "questions", "is_dialogue", "system", "text", "document")
    return {name: getattr(record, name) for name in names} | {"images": [encoded_bytes(one.image) for one in record.images]}


def all_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [told(dataset[index]) for index in range(len(dataset))]


def captions(folder: Path) -> Dataset:
    return ImageFolder(make_image_folder(folder))


def single_captions(folder: Path) -> Dataset:
    shard = make_shard(
        folder / "0.tar", {"a.png": picture_bytes(0), "a.txt": b"One.", "b.jpg": picture_bytes(1, "JPEG"), "b.txt": b"Two."}
    )
    return WebDataset(shard)


def tables(folder: Path) -> Dataset:
    return Parquet(make_parquet(folder), Fields(image="image", caption="text"))


def talks(folder: Path) -> Dataset:
    return LlavaJson(make_llava(folder))


def many_images(folder: Path) -> Dataset:
    """In any turn, before the first one, and alone among the words of a question."""
    make_pictures(folder)
    two = [{"from": "human", "value": "<image>\nand\n<image>\nAre they alike?"}, {"from": "gpt", "value": "No."}, *TURNS[2:]]
    late = [*TURNS[2:], {"from": "human", "value": "And <image> now?"}, {"from": "gpt", "value": "<image>"}]
    plain = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "One."}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "here"}]}
    ]
    entries = [
        {"images": ["0.png", "1.png"], "conversations": two, "system": "Be brief."},
        {"images": ["2.png", "3.png"], "messages": plain},
        {"images": ["2.png", "3.png"], "conversations": late},
        {"images": ["1.png"], "messages": [*parts, {"role": "assistant", "content": "I do."}]},
    ]
    (folder / "many.json").write_text(json.dumps(entries))
    return LlavaJson(folder / "many.json")


def questions(folder: Path) -> Dataset:
    """Some without an image, in two languages."""
    make_pictures(folder)
    items = [
        {"image": "0.png", "q": ["What?", "How many?"], "a": ["A square.", "One."], "lang": "en"},
        {"q": ["几个？"], "a": ["一个。"], "lang": "zh"},
    ]
    fields = Fields(image="image", question="q", answer="a", language="lang", optional=("image",))
    return JsonLines(write_lines(folder / "q.jsonl", items), fields)


def documents(folder: Path) -> Dataset:
    make_pictures(folder)
    items = [
        {"images": ["0.png", None, "1.png"], "texts": [None, "Between two.", None]},
        {"images": [None], "texts": ["Alone."]},
    ]
    return JsonLines(write_lines(folder / "d.jsonl", items), Fields(image="images", texts="texts"))


def texts(folder: Path) -> Dataset:
    return JsonLines(write_lines(folder / "t.jsonl", [{"text": "One.\nTwo."}, {"text": "三。"}]), Fields(text="text"))


def images_alone(folder: Path) -> Dataset:
    return ImageFolder(make_image_folder(folder), captions=False)


def chinese(folder: Path) -> Dataset:
    return WebDataset(make_shard(folder / "0.tar", {"a.png": picture_bytes(0), "a.txt": "一。".encode()}), ZH)


ZH = Fields(caption="txt", default_language="zh")


def some_captions(folder: Path) -> Dataset:
    make_pictures(folder)
    items = [{"image": "0.png", "caption": "One."}, {"image": "1.png"}]
    return JsonLines(write_lines(folder / "s.jsonl", items), Fields(image="image", caption="caption", optional=("caption",)))


def languages_of_some(folder: Path) -> Dataset:
    make_pictures(folder)
    items = [{"image": "0.png", "c": "One.", "l": "en"}, {"image": "1.png", "c": "二。", "l": "zh"}, {"image": "2.png"}]
    fields = Fields(image="image", caption="c", language="l", optional=("c", "l"))
    return JsonLines(write_lines(folder / "l.jsonl", items), fields)


HELD = {
    "jsonl": (captions, single_captions, tables, talks, many_images, questions, documents, texts, languages_of_some),
    "parquet": (captions, single_captions, tables, talks, many_images, questions, documents, texts, languages_of_some),
    "llava": (talks, many_images),
    "image_folder": (captions, single_captions, tables),
    "webdataset": (captions, single_captions, tables, images_alone, chinese, some_captions, languages_of_some),
}


@pytest.mark.parametrize("name", HELD)
def test_a_round_trip_loses_nothing(name: str, tmp_path: Path) -> None:
    assert set(HELD) == set(FORMATS)
    for make in HELD[name]:
        (tmp_path / make.__name__).mkdir()
        dataset = make(tmp_path / make.__name__)
        made = to(name, dataset, tmp_path / f"{make.__name__}-as-{name}")
        assert made.num_records == len(dataset) and not made.bad
        assert all_of(read(made)) == all_of(dataset), (make.__name__, made.overrides)
        is_plain_text = name == "jsonl" and make is texts  # whose views learn from text alone
        assert (made.overrides[0] == "data=text") is is_plain_text
        words = ["data.sources.talk.view._target_=unimm.data.PlainText"] if make is texts and name == "parquet" else []
        assert [word for word in made.overrides if "PlainText" in word] == words


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        (
            "image_folder",
            talks,
            r"llava.json/0 has a conversation, which image_folder does not hold: choose to=jsonl or ",
        ),
        (
            "webdataset",
            many_images,
            r"has 2 images, which webdataset does not hold: choose to=jsonl or to=llava or to=parq",
        ),
        ("llava", captions, r"has captions, which llava does not hold: .* leave them out, leave_out=\[captions\]"),
        ("llava", documents, "has an interleaved document, which llava"),
        ("webdataset", questions, "has no image, which webdataset does not hold"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(name: str, make: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        to(name, make(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Pictures:
    """Arrays with captions and prompts; places that are bad."""

    def __init__(self, num: int = 7, *bad: int, prompts: bool = False) -> None:
        self.num, self.bad, self.prompts = num, bad, prompts
        self.unread = set[int]()

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Record:
        if index in self.unread:
            raise ValueError("Nothing is there.")
        image: Any = b"nothing" if index in self.bad else np.full((9, 9, 3), 20 * index, np.uint8)
        more = (Text("Dark."),) if self.prompts else ()
        return Record(f"p/{index}", image=image, captions=(Text(f"Picture {index}."),), prompts=more)


def test_arrays_become_png_and_what_no_file_holds_can_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p/0 has prompts .* leave it out, leave_out=\[prompts\]"):
        to("jsonl", Pictures(prompts=True), tmp_path / "out")
    made = to("webdataset", Pictures(prompts=True), tmp_path / "out", leave_out=("prompts",))
    record = read(made)[3]
    assert record.captions[0].text == "Picture 3."
    with pytest.raises(ValueError, match="no format 'csv': choose to=jsonl, to=llava"):
        ConversionConfig("csv")
    with pytest.raises(ValueError, match="is not a converted data set"):
        to("jsonl", Pictures(), make_pictures(tmp_path / "photos"))


def test_bad_records_are_left_out_and_listed_within_the_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 7 records cannot be used \(1 .*max_bad=0 of them may be; .*listed in"):
        to("jsonl", Pictures(7, 2), tmp_path / "out")
    made = to("jsonl", Pictures(7, 2, 6), tmp_path / "out", max_bad=0.3)
    assert made.num_records == 5 and [one.key for one in made.bad] == ["p/2", "p/6"]
    assert [one["captions"][0].text for one in all_of(read(made))] == [f"Picture {index}." for index in (0, 1, 3, 4, 5)]
    assert (tmp_path / "out.bad_records.txt").read_text().startswith("p/2\tCannot read the image data: it is not")
    to("jsonl", Pictures(7), tmp_path / "out")
    assert not (tmp_path / "out.bad_records.txt").exists()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["webdataset", "image_folder"])
def test_killed_it_goes_on_where_it_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a bounded size; the second one is half written when the process dies."""
    words = {"max_bad": 0.5, "shard_megabytes": 150e-6}  # two pictures
    to(name, Pictures(7, 1), tmp_path / "alone", **words)
    save = ResumableFolder.save

    def dying(self: ResumableFolder, number: int, write: Any) -> None:
        def half(path: Path) -> None:
            write(path)
            path.write_bytes(path.read_bytes()[:40])
            os.kill(os.getpid(), signal.SIGKILL)

        save(self, number, half if number == 1 else write)

    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a lock that another thread held when the process was forked is never released
            monkeypatch.setattr(ResumableFolder, "save", dying)
            to(name, Pictures(7, 1), tmp_path / "killed", **words)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and not (tmp_path / "killed").exists()
    made = to(name, Pictures(7, 1), tmp_path / "killed", **words)
    ours, alone = content(tmp_path / "killed"), content(tmp_path / "alone")
    assert made.num_records == 6 and len(ours) > 3
    assert {name: one for name, one in ours.items() if name != ".conversion.json"} == {
        name: one for name, one in alone.items() if name != ".conversion.json"
    }


class KilledError(Exception):
    """Stands for a kill."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> Any:
    """Until it is undone, the part of this number is not written any more."""
    save = ResumableFolder.save

    def dying(self: ResumableFolder, number: int, write: Any) -> None:
        if number == at:
            raise KilledError
        save(self, number, write)

    monkeypatch.setattr(ResumableFolder, "save", dying)
    return pytest.raises(KilledError)


@pytest.mark.parametrize("name", ["jsonl", "webdataset"])
def test_a_record_that_is_mended_between_two_interruptions_moves_no_other_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts end elsewhere after it; those that were made before must not be taken for their neighbours."""
    words = {"max_bad": 0.5, "shard_megabytes": 150e-6}  # two pictures
    to(name, Pictures(9), tmp_path / "alone", **words)
    for bad, at in (((1,), 3), ((), 1)):
        with monkeypatch.context() as patch, interrupt(patch, at):
            to(name, Pictures(9, *bad), tmp_path / "out", **words)
    whole = tmp_path / ".out.unfinished" / "whole"
    for stale in ("data.jsonl", ".conversion.json", ".000007.jsonl", "images/00007/000000030.png"):
        (whole / stale).parent.mkdir(parents=True, exist_ok=True)
        (whole / stale).write_text("{}\n")
    made = to(name, Pictures(9), tmp_path / "out", **words)
    ours, alone = content(tmp_path / "out"), content(tmp_path / "alone")
    assert made.num_records == 9 and ours.keys() == alone.keys()
    assert all(ours[one] == alone[one] for one in ours if one != ".conversion.json")


class TwoCaptions(Pictures):
    """The second record alone has two."""

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return replace(record, captions=(*record.captions, Text("Or so."))) if index == 1 else record


def test_what_a_mended_record_holds_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: Any = {"max_bad": 0.5, "shard_megabytes": 150e-6}
    dataset = TwoCaptions()
    dataset.unread.add(1)
    with monkeypatch.context() as patch, interrupt(patch, 1):
        to("jsonl", dataset, tmp_path / "out", **words)
    dataset.unread.clear()
    assert all_of(read(to("jsonl", dataset, tmp_path / "out", **words))) == all_of_pictures(dataset)
    dataset.unread.add(1)

    def mend(title: str, _: int) -> Any:
        if title.startswith("writing"):
            dataset.unread.clear()
        return nullcontext(lambda _: None)

    with pytest.raises(ValueError, match=r"1 records could not be read at first and can now, such as record 1: give the same"):
        convert(dataset, tmp_path / "out", ConversionConfig("jsonl", **words), mend)
    assert all_of(read(to("jsonl", dataset, tmp_path / "out", **words))) == all_of_pictures(dataset)


def all_of_pictures(dataset: Dataset) -> list[dict[str, Any]]:
    """As they are read again: arrays are PNG then."""
    records = [dataset[index] for index in range(len(dataset))]
    return [told(record) | {"images": [image_file(one.image).content for one in record.images]} for record in records]


def test_names_and_texts_that_are_no_utf_8(tmp_path: Path) -> None:
    class Odd(Pictures):
        def __getitem__(self, index: int) -> Record:
            record = replace(super().__getitem__(index), key=f"caf\udce9/{index}")
            return replace(record, captions=(Text("Nice \ud83d"),)) if index == 2 else record

    made = to("jsonl", Odd(5, 3), tmp_path / "out", max_bad=0.5)
    assert made.num_records == 3
    first, second = (tmp_path / "out.bad_records.txt").read_text("utf-8").splitlines()
    assert first.startswith("caf\\udce9/2\tA text holds half of a character (\\ud83d), such as an emoji that was cut")
    assert second.startswith("caf\\udce9/3\t")
    lines = (tmp_path / "out" / "data.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[0])["id"] == "caf\\udce9/0"


def test_a_turned_pil_image_is_written_upright() -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    picture.getexif()[0x0112] = 6  # a quarter turn
    written = decode_image(image_file(picture).content)
    assert written.size == (2, 4) and written.tobytes() == decode_image(picture).tobytes()
