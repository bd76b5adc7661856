"""`unimm bench data`: a toy of it runs; what is measured is the loading process; the pipelines make the same pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unimm.bench import data as bench_data
from unimm.bench.data import Scale, Speed, check_peers, plain_pixels, run_scale, run_speed
from unimm.bench.data_files import FORMS, caption, open_records, photographs, write_photographs, write_records
from unimm.cli.app import app
from unimm.cli.bench import data as command
from unimm.data.image import crop, decode_image


def test_every_form_holds_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimm.bench.data_files.SHARD", 8)
    monkeypatch.setattr("unimm.bench.data_files.TABLE", 16)
    for form in FORMS:
        dataset = open_records(write_records(tmp_path, form, 16), form)
        assert len(dataset) == 16 and dataset[3].captions[0].text == caption(3)
        assert dataset[3].image is not None and decode_image(dataset[3].image).size == (64, 64)
    with pytest.raises(ValueError, match="jsonl, webdataset, parquet"):
        write_records(tmp_path, "csv", 1)


def test_a_loading_process_is_watched(tmp_path: Path) -> None:
    told = run_scale(Scale("jsonl", str(write_records(tmp_path, "jsonl", 300)), 40))
    # No bound from above: here the process is a copy of a test process, and whatever of that it touches counts as its own.
    assert told["records"] == 300 and 0 <= told["worker_half_mb"] <= told["worker_mb"]
    assert 0 < told["open_seconds"] < told["start_seconds"] and told["records_a_second"] > 0


def test_pipelines_make_the_same_pixels(tmp_path: Path) -> None:
    picture = photographs(80, 60)[0]
    (tmp_path / "0.jpg").write_bytes(picture)
    with Image.open(tmp_path / "0.jpg") as opened:
        assert np.array_equal(plain_pixels(opened, 32), crop(picture, 32))


@pytest.mark.parametrize(("who", "form"), [("unimm", "arrow"), ("webdataset", "webdataset"), ("datasets", "arrow")])
def test_pipelines_load_all_images(who: str, form: str, tmp_path: Path) -> None:
    if who != "unimm":
        pytest.importorskip(who, reason=f"{who} is not installed: the benchmark asks for it, and nothing else")
    folder = write_photographs(tmp_path, form, 16, 80, 60)
    told = run_speed(Speed(who, form, str(folder), 16, 32, batch_size=4, num_workers=0))
    assert told["images"] == 12 and told["images_a_second"] > 0


def test_a_peer_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"one of webdataset, datasets, not 'zebra'"):
        check_peers(["zebra"])
    monkeypatch.setattr(bench_data, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["bench", "data", "--records", "0", "--out", str(tmp_path / "x/data.json")])
    assert result.exit_code == 2 and "webdataset is not installed: pip install webdataset" in result.stderr, result.output
    assert not (tmp_path / "x/data.json").exists()


def test_bars_are_held_to_the_median_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By trials of the test's own: which figures are compared, and what the exit code says."""
    rates = iter([(90.0, 100.0), (99.0, 100.0), (98.0, 100.0)])
    turns: list[list[str]] = []

    def trials(module: str, trials: list[Any], repeats: int, progress: Any) -> list[dict[str, Any]]:
        if isinstance(trials[0], Scale):
            told = {"worker_mb": 100.0, "worker_half_mb": 100.0, "start_seconds": 60.0 if trials[0].num_reads == 1 else 1.0}
            return [{**vars(trials[0]), **told, "records": 9, "main_mb": 1.0, "records_a_second": 5.0}]
        turns.append([one.who for one in trials])
        measured = dict(zip(("unimm", "webdataset"), next(rates), strict=True))
        return [{**vars(one), "images_a_second": measured[one.who]} for one in trials]

    monkeypatch.setattr(command, "run_in_turns", trials)
    monkeypatch.setattr(command, "check_peers", lambda names: None)
    for name in ("write_records", "write_photographs"):
        monkeypatch.setattr(command, name, lambda folder, form, *_: folder / form)
    words = ["bench", "data", "--pairs", "3", "--peer", "webdataset", "--out", str(tmp_path / "data.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "data.json").read_text())
    assert told["speed"][0]["ratio"] == 0.98 and [one["first_start_seconds"] for one in told["scale"]] == 3 * [60.0]
    assert turns == [["unimm", "webdataset"], ["webdataset", "unimm"], ["unimm", "webdataset"]]
    rates = iter(3 * [(94.0, 100.0)])
    assert CliRunner().invoke(app, [*words, "--records", "0"]).exit_code == 1
