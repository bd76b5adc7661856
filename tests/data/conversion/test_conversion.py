"""Every format gives back what was written into it, images byte for byte; what it cannot hold is refused before anything is
written, broken records are left out by the budget, and a conversion that was killed goes on."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from unimm.data.conversion.format import FORMATS
from unimm.data.conversion.run import ConversionConfig, Converted, convert
from unimm.data.inspection.measure import encoded_bytes
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import Dataset, Record
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


HELD = {
    "jsonl": (captions, single_captions, tables, talks, many_images, questions, documents, texts),
    "parquet": (captions, single_captions, tables, talks, many_images, questions, documents, texts),
    "llava": (talks, many_images),
    "image_folder": (captions, single_captions, tables),
    "webdataset": (captions, single_captions, tables),
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

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Record:
        from unimm.data.records import Text

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
    """Shards of a bounded size; the second part is half written when the process dies."""
    monkeypatch.setattr("unimm.data.conversion.run.LINES", 2)
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
        monkeypatch.setattr(ResumableFolder, "save", dying)
        to(name, Pictures(7, 1), tmp_path / "killed", **words)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and not (tmp_path / "killed").exists()
    made = to(name, Pictures(7, 1), tmp_path / "killed", **words)
    ours, alone = content(tmp_path / "killed"), content(tmp_path / "alone")
    assert made.num_records == 6 and len(ours) > 3
    assert {name: one for name, one in ours.items() if name != ".conversion.json"} == {
        name: one for name, one in alone.items() if name != ".conversion.json"
    }
