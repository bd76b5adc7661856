"""An inspection: what is wrong with data is counted by reason, nothing stops it, and one that was interrupted goes on."""

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import tiny_text_tokenizer
from PIL import Image

from unimm.data.inspection import run as run_module
from unimm.data.inspection.measure import Measure, measure_image, script_of
from unimm.data.inspection.page import write_result
from unimm.data.inspection.run import InspectionConfig, drop_parts, measure_all
from unimm.data.records import Question, Record, RecordImage, Text
from unimm.data.template import PromptFormat, Template
from unimm.data.views import Conversation, Document, Drawing
from unimm.runtime.resumable_folder import workspace_of

LONG = "a square " * 60
CUT_AT = 64


def jpeg(seed: int, side: int = 48) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


class Mess:
    """25 records, in which much is wrong."""

    broken: ClassVar = {3: jpeg(3)[:-200], 4: b"<html>not an image</html>", 5: b"", 6: Path("nowhere.jpg")}

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> Record:
        if index == 9:
            raise ValueError(f"record {index}: its line is not JSON")
        image = self.broken.get(index, jpeg(1 if index in (1, 20) else index, side=90 if index == 20 else 48))
        captions = () if index == 10 else (Text(LONG if index == 11 else f"a square, number {index}."),)
        if index == 12:
            captions = (Text("一个正方形", "en"), Text("<begin_of_image> a square", "en"))
        questions = (Question("What?", "a square", language="en"),) if index % 2 else ()
        return Record(f"mess/{index}", image=image, captions=captions, questions=questions)


def measures(with_images: bool = True) -> dict[str, Measure]:
    template = Template(tiny_text_tokenizer(), PromptFormat(), 16, 4, max_positions=CUT_AT)
    views = {"draw": Drawing(drop=0.0), "talk": Conversation(caption_share=1.0)}
    return {"draw, talk": Measure(Mess(), views, template, 16, 0, with_images)}


def quiet(title: str, total: int):
    return nullcontext(lambda _: None)


def inspect(out: Path, config: InspectionConfig = InspectionConfig(), with_images: bool = True) -> dict:  # noqa: B008 - frozen
    return write_result(out, measure_all(measures(with_images), out, config, quiet), {"max_positions": CUT_AT})


def test_what_is_wrong_is_counted_by_reason(tmp_path: Path) -> None:
    told = inspect(tmp_path / "out")["data_sets"]["draw, talk"]
    assert (told["records"], told["readable"], told["images"]["count"], told["images"]["decoded"]) == (25, 24, 24, 20)
    assert told["bad_records"]["count"] == 1 and "not JSON" in told["bad_records"]["reasons"][0]["reason"]
    reasons = {key: reason["reason"] for reason in told["bad_images"]["reasons"] for key in reason["keys"]}
    assert {key: reasons[f"mess/{key}"].split(",")[0] for key in (3, 5, 6)} == {
        3: "its data is damaged or cut short",
        5: "it is empty",
        6: "there is no such file",
    }
    assert "not a JPEG" in reasons["mess/4"]
    draw, talk = told["sources"]["draw"], told["sources"]["talk"]
    assert draw["cut"] == talk["cut"] == 1 and draw["longest"]["key"] == "mess/11" and draw["positions"]["max"] > CUT_AT
    assert draw["refused"]["reasons"] == [
        {"reason": "it has no captions and no prompts, which this view needs", "count": 1, "keys": ["mess/10"]}
    ]
    assert told["near_duplicates"]["largest"] == [{"records": 2, "keys": ["mess/1", "mess/20"]}]
    assert told["languages"]["en"]["Han"] == 1
    said = " ".join(told["warnings"])
    assert all(
        part in said for part in ("1 records cannot", "4 images cannot", "refuses 1", "special token", "not written in Latin")
    )


def test_the_folder_holds_all_of_it(tmp_path: Path) -> None:
    inspect(tmp_path / "out")
    problems = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text("utf-8").splitlines()]
    assert {one["key"] for one in problems if one["about"] == "image"} == {f"mess/{index}" for index in (3, 4, 5, 6)}
    assert json.loads((tmp_path / "out/duplicates.jsonl").read_text("utf-8"))["indices"] == [1, 20]
    page = (tmp_path / "out/inspection.html").read_text("utf-8")
    assert page.count("<img") == 20 + 2 and 'src="http' not in page and "&lt;begin_of_image&gt;" in page


def test_images_stay_closed_where_only_metadata_is_asked_for(tmp_path: Path) -> None:
    told = inspect(tmp_path / "out", with_images=False)["data_sets"]["draw, talk"]
    assert told["bad_images"]["count"] == 0 and told["images"] == {"count": 24, "decoded": 0}
    assert "<img" not in (tmp_path / "out/inspection.html").read_text("utf-8")


def test_one_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PART_RECORDS", 10)
    whole = inspect(tmp_path / "whole")
    seen: list[int] = []
    measure = Measure.__call__

    def stop_in_the_second(self: Measure, indices: np.ndarray):
        seen.append(int(indices[0]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, indices)

    monkeypatch.setattr(Measure, "__call__", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        inspect(tmp_path / "out")
    assert workspace_of(tmp_path / "out").is_dir()
    with pytest.raises(ValueError, match="another settings"):
        measure_all(measures(), tmp_path / "out", InspectionConfig(seed=1), quiet)
    again = inspect(tmp_path / "out")
    assert seen == [0, 10, 10, 20]
    assert again["data_sets"] == whole["data_sets"]
    drop_parts(tmp_path / "out")
    assert not workspace_of(tmp_path / "out").exists()


def test_a_sample_is_drawn_at_random_and_the_same_again(tmp_path: Path) -> None:
    one, again, other = (
        measure_all(measures(False), tmp_path / name, InspectionConfig(7, seed), quiet)["draw, talk"].indices.tolist()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == again != other and len(one) == 7


def test_several_images_of_a_record_are_all_looked_at() -> None:
    album = Record(
        "album",
        jpeg(1),
        others=(RecordImage(jpeg(2)), RecordImage(b"")),
        document=("Look:", 0, 1, "and", 2),
        system="Be brief.",
    )

    class Albums(Mess):
        def __getitem__(self, index: int) -> Record:
            return album

    one = measures()["draw, talk"]
    part = Measure(Albums(), {"read": Document()}, one.template, 16)(np.array([0]))
    assert (part.counts["images"], part.counts["several images"], len(part.numbers["width"])) == (3, 1, 2)
    assert [problem.about for problem in part.problems] == ["image"]
    assert len(part.tokens["document"]) == 2 and len(part.tokens["system"]) == 1 and len(part.lengths["read"]) == 1


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a dog", "Latin"),
        ("Ein süßer Hund", "Latin"),
        ("一只狗 (dog)", "Han"),
        ("собака", "Cyrillic"),
        ("42!", "other"),
        ("いぬ", "Kana"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_an_image_is_measured_upright_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (20, 30)).save(path, exif=exif)
    seen = measure_image(path)
    assert (seen.form, seen.mode) == ("JPEG", "CMYK")
    assert (seen.numbers["width"], seen.numbers["height"], seen.numbers["bytes"]) == (30, 20, path.stat().st_size)
    assert measure_image(np.zeros((4, 5, 3), np.uint8)).form == "array"
