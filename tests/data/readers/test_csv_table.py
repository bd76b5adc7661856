"""CSV and TSV as pandas, Excel and open_clip write them; what is none is refused in one sentence."""

import csv
import io
import pickle
from pathlib import Path

import pytest
from users_files import CAPTIONS, make_pictures, read_all

from unimm.bench.broken_files import make_folder
from unimm.cli.compose import build, compose_config
from unimm.data.readers.csv_table import CsvTable
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder

FIELDS = Fields(image="image", caption="caption")
TEXTS = ['A "red" square; small, and\nalone.', "绿色的 square, asleep.", "A\tblue\u2028 square.", "[not a list"]


def text_of(separator: str = ",", end: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> str:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, lineterminator=end, quoting=quoting)  # pyright: ignore
    writer.writerows([("", "image", "caption", "n"), *((n, f"{n}.png", text, "") for n, text in enumerate(TEXTS))])
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", b"\xef\xbb\xbf" + text_of(";").encode()),
        ("sep.csv", b"sep=;\r\n" + text_of(";").encode()),
        ("pandas.csv", text_of(end="\n").encode()),
        ("quoted.CSV", (text_of(quoting=csv.QUOTE_ALL) + "\r\n\r\n").encode()),
        ("tabs.tsv", text_of("\t").encode()),
        ("bars.csv", text_of("|").encode().rstrip()),
    ],
)
def test_tables_of_all_kinds(name: str, content: bytes, tmp_path: Path) -> None:
    make_pictures(tmp_path)
    (tmp_path / name).write_bytes(content)
    dataset = CsvTable(tmp_path, FIELDS)
    records = read_all(dataset)
    assert [record.captions[0].text for record in records] == TEXTS
    assert [record.image for record in records] == [tmp_path / f"{number}.png" for number in range(4)]
    assert read_all(pickle.loads(pickle.dumps(dataset))) == records and dataset.key_at(2) == f"{name}/2"


def test_lists_in_cells_and_columns_by_other_names(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    rows = [
        ("filepath", "title", "language"),
        ('["0.png", "1.png"]', '["Two.", "A pair."]', ""),
        ("['1.png']", "[a cat]", "zh"),
        ("2.png", "['one', 'two']", "en"),
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    fields = Fields(image="filepath", caption="title", language="language", optional=("language",))
    records = read_all(CsvTable(tmp_path / "a.csv", fields))
    assert [record.num_images for record in records] == [2, 1, 1]
    assert [[text.text for text in record.captions] for record in records] == [["Two.", "A pair."], ["[a cat]"], ["one", "two"]]
    assert [record.captions[0].language for record in records] == ["en", "zh", "en"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"image,caption\n", "no rows"),
        (b"", "has no 'caption'"),
        (b"image,words\n0.png,A.\n", "has no 'caption', there is image, words"),
        (b"image,caption,caption\n0.png,A.,B.\n", "two columns 'caption'"),
        (
            b"image,caption\n0.png,A, b.\n",
            "does not have one value a column, but 3 for 2: put quotes around texts with ','",
        ),
        (b'image,caption\n0.png,"A.\n1.png,B.\n', "line 3 cannot be read (unexpected end of data)"),
        (b"image,caption\n0.png,\xe9t\xe9.\n", "line 2 cannot be read"),
        (b"image,caption\n0.png,\n", "line 2: record a.csv/0: the field 'caption' is empty"),
        (b"image,caption\n9.png,A.\n", "9.png is not there"),
        ("image,caption\n0.png,A.\n".encode("utf-16"), "is UTF-16"),
        (b"PK\x03\x04rest", "an Excel workbook"),
    ],
)
def test_what_is_wrong_is_told(content: bytes, words: str, tmp_path: Path) -> None:
    make_pictures(tmp_path)
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError) as raised:
        CsvTable(tmp_path / "a.csv", FIELDS)
    assert words in str(raised.value) and "a.csv" in str(raised.value) and "\n" not in str(raised.value), raised.value


def test_by_configuration(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    lines = ["image;caption", *(f"{number}.png;{text}" for number, text in enumerate(CAPTIONS))]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    words = ["data=csv", f"data.paths={tmp_path}/a.csv", "~data.sources.draw", "image_tokenizer=x"]
    dataset = build(compose_config("train", words).data.sources.talk.dataset)
    assert [record.captions[0].text for record in read_all(dataset)] == list(CAPTIONS)


def test_a_long_cell_in_the_table_of_a_folder(tmp_path: Path) -> None:
    """More than the csv module reads by itself."""
    make_pictures(tmp_path, ("0.png",))
    (tmp_path / "metadata.csv").write_text(f"file_name\ttext\n0.png\t{'A. ' * 100_000}\n")
    assert len(ImageFolder(tmp_path)[0].captions[0].text) == 299_999


def test_a_bad_row_of_captions_is_one_of_those_that_may_be(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", (), num_good=10)
    (folder / "metadata.csv").write_text("file_name,text\ngood00.png,one, two\ngood01.png,Two.\n")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2 does not have one value a column"):
        ImageFolder(folder)
    dataset = ImageFolder(folder, max_bad=0.1)
    assert [dataset[index].captions[0].text for index in (0, 1, 2)] == ["Picture 0.", "Two.", "Picture 2."]
    (folder / "good03.txt").unlink()
    (folder / "metadata.csv").write_text("file_name,text\ngood0three.png,Three.\n")
    assert len(ImageFolder(folder, max_bad=0.1)) == 10, "the misspelt row and its image are one"


def test_a_quote_out_of_place_is_told_of_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,caption\n1.png,"One" more\n2.png,Two.\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 2 cannot be read"):
        CsvTable(tmp_path / "a.csv", FIELDS)
