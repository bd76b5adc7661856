"""`unimm data convert`: the data overrides of a training in, a folder in another format out."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner
from users_files import make_all

from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.cli.data import named_datasets


def call(*words: object):
    return CliRunner().invoke(app, ["data", "convert", *(str(word) for word in words), "num_workers=0"])


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_all(tmp_path))
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)


def test_it_tells_how_the_result_is_read() -> None:
    Path("captions/3.png").write_bytes(b"<html>")
    result = call("data=jsonl", "data.paths=captions/captions.jsonl", "to=parquet", "max_bad=0.3", "out=new/tables")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first == "new/tables: 3 records; 1 could not be used, see tables.bad_records.txt beside it"
    words = shlex.split(second.removeprefix("Read it with: "))
    (dataset,) = named_datasets(compose_config("train", [*words, "image_tokenizer=x", "codes=x"])).values()
    assert len(dataset) == 3 and dataset[0].captions[0].text == "A red square."
    assert [path.name for path in Path("new").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data=jsonl", "data.paths=captions/captions.jsonl", "to=xml", "out=x"), "no format 'xml'"),
        (("to=jsonl", "out=x"), "add source=NAME"),
        (("data=llava", "data.paths=llava/llava.json", "to=image_folder", "out=x"), "which image_folder does not hold"),
    ],
)
def test_mistakes_end_in_one_sentence(words: tuple[str, ...], told: str) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr and result.stderr.startswith("unimm: ")
