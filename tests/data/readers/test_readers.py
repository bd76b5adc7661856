"""Every reader: a record is a function of its index, in any process; images are not decoded; views make sequences of all."""

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from toys import make_template
from users_files import (
    CAPTIONS,
    DOCUMENTS,
    TURNS,
    look_all,
    make_all,
    make_image_folder,
    make_shard,
    picture_bytes,
    read_all,
    send_all,
    write_lines,
)

from unimm.cli.compose import build, compose_config
from unimm.data.image import decode_image, look
from unimm.data.readers.csv_table import CsvTable
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.llava import LlavaJson
from unimm.data.readers.parquet import Parquet, ParquetImage
from unimm.data.readers.plain_text import PlainTextFiles
from unimm.data.readers.web_dataset import TarImage, WebDataset
from unimm.data.records import Dataset, UnreadImage
from unimm.data.views import Conversation, Dialogue, Drawing, PlainText, View
from unimm.sequence import Kind

READERS: dict[str, Callable[[Path], Dataset]] = {
    "image_folder": lambda files: ImageFolder(files / "photos"),
    "json_lines": lambda files: JsonLines(files / "captions", Fields(image="image", caption="caption")),
    "csv_table": lambda files: CsvTable(files / "csv", Fields(image="image", caption="caption")),
    "llava": lambda files: LlavaJson(files / "llava/llava.json"),
    "parquet": lambda files: Parquet(files / "tables", Fields(image="image", caption="text")),
    "web_dataset": lambda files: WebDataset(files / "shards"),
    "plain_text": lambda files: PlainTextFiles(files / "texts", max_characters=20),
}
VIEWS: dict[str, View] = {"llava": Dialogue(), "plain_text": PlainText()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("files"))


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_record_is_a_function_of_its_index(name: str, files: Path) -> None:
    dataset = READERS[name](files)
    records = read_all(dataset)
    assert [dataset[index] for index in reversed(range(len(dataset)))] == records[::-1]
    assert look_all(pickle.loads(pickle.dumps(dataset))) == look_all(READERS[name](files)) == look_all(dataset)
    assert len({record.key for record in records}) == len(records) > 1
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_read_the_same(method: str, files: Path) -> None:
    datasets = [make(files) for make in READERS.values()]
    records = [look_all(dataset) for dataset in datasets]  # read before: what was opened may not get in a child's way
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=send_all, args=(datasets, theirs))
    child.start()
    assert ours.poll(120) and ours.recv() == records
    child.join()


def test_a_copy_elsewhere_has_the_same_keys(name: str, files: Path, tmp_path: Path) -> None:
    """Stored codes still belong to them."""
    copy = shutil.copytree(files, tmp_path / "elsewhere")
    assert [r.key for r in read_all(READERS[name](copy))] == [r.key for r in read_all(READERS[name](files))]


def test_images_are_not_decoded(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_words):
        raise AssertionError("a reader has opened an image")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        records = read_all(READERS[name](files))
    images = [record.image for record in records if record.image is not None]
    assert all(isinstance(image, Path | UnreadImage) and decode_image(image).size == (20, 16) for image in images)
    assert len(images) == {"llava": 2, "plain_text": 0}.get(name, 4)


@pytest.mark.parametrize("name", ["parquet", "web_dataset"], indirect=True)
def test_images_inside_of_files_are_read_when_they_are_looked_at(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is planned far ahead in every process: planning reads texts alone."""
    dataset = READERS[name](files)
    expected = [look(record.image, 16) for record in read_all(dataset) if record.image is not None]
    read = []
    for kind in (ParquetImage, TarImage):
        original = kind.read
        monkeypatch.setattr(kind, "read", lambda image, original=original: read.append(image) or original(image))
    template = make_template()
    sequences = [
        Conversation(caption_share=1.0)(record, template, np.random.default_rng(0))
        for record in read_all(pickle.loads(pickle.dumps(dataset)))
    ]
    assert not read
    opened = [one.image.open() for sequence in sequences for one in sequence.segments if one.image]
    assert len(read) == 4 and all(np.array_equal(one, other) for one, other in zip(opened, expected, strict=True))


def test_views_make_sequences_of_all(name: str, files: Path) -> None:
    template, rng = make_template(), np.random.default_rng(0)
    for record in read_all(READERS[name](files)):
        views = [VIEWS[name]] if name in VIEWS else [Conversation(caption_share=1.0), Drawing(0.0)]
        for view in views:
            sequence = view(record.with_codes(np.zeros(4, dtype=np.int64)), template, rng)
            learned = [segment for segment in sequence.segments if segment.learn]
            assert learned and not sequence.is_open
            kinds = {segment.kind for segment in sequence.segments}
            assert (Kind.PIXELS in kinds) == (record.image is not None and not isinstance(view, Drawing))


@pytest.mark.parametrize("name", ["json_lines", "csv_table", "parquet", "web_dataset"], indirect=True)
def test_captions_are_those_that_were_written(name: str, files: Path) -> None:
    assert [record.captions[0].text for record in read_all(READERS[name](files))] == list(CAPTIONS)


def test_a_folder_is_sorted_by_name(files: Path) -> None:
    records = read_all(READERS["image_folder"](files))
    assert [record.key for record in records] == ["a.png", "b.png", "lines/0.png", "table/x/1.png"]
    assert [r.captions[0].text for r in records] == [CAPTIONS[1], CAPTIONS[0], CAPTIONS[2], CAPTIONS[3]]
    assert [text.text for text in records[2].captions] == [CAPTIONS[2], "Blue."]


def test_stored_codes_among_the_files_are_no_data(tmp_path: Path) -> None:
    """Codes hold a picture and a manifest; the folder that a user names is read, whatever is in it."""
    make_image_folder(tmp_path / "photos")
    before = read_all(ImageFolder(tmp_path / "photos"))
    table = read_all(JsonLines(tmp_path / "photos", Fields(caption="text")))
    codes = tmp_path / "photos/codes/x"
    codes.mkdir(parents=True)
    for name in ("codes.safetensors", "manifest.json"):
        (codes / name).write_text("{}")
    (codes / "reconstructions.png").write_bytes(picture_bytes(0))
    assert read_all(ImageFolder(tmp_path / "photos")) == before
    assert read_all(JsonLines(tmp_path / "photos", Fields(caption="text"))) == table
    assert len(ImageFolder(codes, captions=False)) == 1


def test_a_conversation_keeps_its_order(files: Path) -> None:
    looking, _, talking = read_all(READERS["llava"](files))
    assert [(q.text, q.answer) for q in looking.questions] == [("What is it?", "A square."), ("Which one?", "The first.")]
    assert looking.questions[1].text == TURNS[2]["value"]
    assert talking.image is None and talking.questions[0].answer == "Good day."


def test_documents_are_read_whole(files: Path) -> None:
    texts = [record.text for record in read_all(PlainTextFiles(files / "texts"))]
    assert [text.text for text in texts if text is not None] == 2 * list(DOCUMENTS)


def test_turns_keep_their_order_whoever_reads_them(tmp_path: Path) -> None:
    """By `data=jsonl`, `parquet` and `webdataset` a conversation is what it is by `data=llava`: whole, and in its order."""
    turns = [
        {"from": who, "value": f"{word} {n}{end}"}
        for n in range(6)
        for who, word, end in (("human", "Question", "?"), ("gpt", "Answer", "."))
    ]
    (tmp_path / "0.png").write_bytes(picture_bytes(0))
    write_lines(tmp_path / "a.jsonl", [{"image": "0.png", "conversations": turns}])
    rows = pyarrow.table({"image": [picture_bytes(0)], "conversations": [turns]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    talk = json.dumps({"conversations": turns}).encode()
    make_shard(tmp_path / "a.tar", {"0.png": picture_bytes(0), "0.json": talk})
    template = make_template()
    for data, suffix in (("jsonl", "jsonl"), ("parquet", "parquet"), ("webdataset", "tar")):
        named = ["data.fields.caption=null", "data.fields.conversation=conversations", "~data.sources.draw"]
        words = [f"data={data}", f"data.paths={tmp_path}/a.{suffix}", *named, "image_tokenizer=x"]
        source = compose_config("train", words).data.sources.talk
        record, view = build(source.dataset)[0], build(source.view)
        for seed in range(3):
            learned = [s.ids for s in view(record, template, np.random.default_rng(seed)).segments if s.learn]
            assert [template.tokenizer.decode(ids).strip() for ids in learned] == [f"Answer {n}." for n in range(6)]


def test_a_row_of_a_table_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows come in any order a group is not read for each; where they come in order it is read once."""
    pictures = [picture_bytes(number) for number in range(40)]
    pyarrow.parquet.write_table(pyarrow.table({"image": pictures}), tmp_path / "a.parquet", row_group_size=20)
    groups: list[int] = []
    whole = Parquet._read
    monkeypatch.setattr(Parquet, "_read", lambda self, *what: groups.extend([what[1]] * len(what[2])) or whole(self, *what))
    shuffled = Parquet(tmp_path, Fields(image="image"), num_groups=1)
    for row in (39, 3, 20, 11):
        assert decode_image(shuffled[row].image).tobytes() == decode_image(pictures[row]).tobytes()
    assert groups == []
    ordered = Parquet(tmp_path, Fields(image="image"), num_groups=1)
    assert [bytes(record.image.read()) for record in read_all(ordered)] == pictures
    assert groups == [0, 1]
