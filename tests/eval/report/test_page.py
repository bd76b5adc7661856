"""The report: one page that holds everything in itself, and shows failures first."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.eval.report.curves import draw_curves, read_metrics, smooth
from unimm.eval.report.page import SHOWN, choose_examples, colour_codes, read_samples, write_report
from unimm.eval.runner import evaluate
from unimm.eval.task import PICTURES_KEPT, Example, ImageRetention
from unimm.eval.tasks.digits import DigitsAnswers
from unimm.eval.tasks.reconstruction import ShapesReconstruction
from unimm.eval.tasks.shapes import ShapesDrawings
from unimm.inference.engine import Engine


class Page(HTMLParser):
    """What a page points to, and the classes of its tiles in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tiles: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.sources += [told[name] or "" for name in ("src", "href") if told.get(name)]
        if (told.get("class") or "").startswith("tile "):
            self.tiles.append(told["class"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed out of order"


@pytest.fixture(scope="module")
def run(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a quickstart leaves it: two trainings and an evaluation."""
    folder = tmp_path_factory.mktemp("run")
    tasks = [DigitsAnswers(20), ShapesReconstruction(12), ShapesDrawings(1)]
    evaluate(tiny_engine, tasks, folder / "scores", progress=False)
    for name in ("tokenizer", "unified"):
        (folder / name).mkdir()
        lines = [{"step": step, "loss/text": 1 / (step + 1), "speed/images": 3.0} for step in range(40)]
        text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 40, "loss/te'
        (folder / name / "metrics.jsonl").write_text(text)
        (folder / name / "config.yaml").write_text("note: <b>&</b>\n")
    for name, step, side in (("drawings", 9, 4), ("drawings", 1000, 8), ("reconstructions", 1000, 6)):
        (folder / "unified" / "samples").mkdir(exist_ok=True)
        Image.new("RGB", (side, side)).save(folder / "unified" / "samples" / f"{step:08d}-{name}.png")
    (folder / "unified" / "samples" / "00001000-captions.txt").write_text("a <red> circle\n    -> a circle\n")
    (folder / "quickstart.json").write_text(json.dumps({"seed": 7, "seconds": 90.0}))
    return folder


def test_the_page_holds_everything_in_itself(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.sources and all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert "seed 7" in text and "1.5 minutes" in text and "2 trainings, 1 evaluation" in text
    for words in ("digits answers", "shapes reconstruction", "Training: tokenizer", "Training: unified", "<svg"):
        assert words in text
    assert "note: &lt;b&gt;&amp;&lt;/b&gt;" in text
    assert 'alt="its codes"' in text


def test_a_training_shows_its_newest_samples(run: Path) -> None:
    samples = read_samples(run / "unified" / "samples")
    assert [(one.name, one.step) for one in samples] == [("drawings", 1000), ("reconstructions", 1000), ("captions", 1000)]
    picture = Image.open(io.BytesIO(base64.b64decode((samples[0].picture or "").partition(",")[2])))
    assert picture.size == (8, 8) and samples[2].text == "a <red> circle\n    -> a circle"
    text = write_report(run).read_text(encoding="utf-8")
    assert "reconstructions after 1,000 steps" in text and "a &lt;red&gt; circle" in text
    assert read_samples(run / "tokenizer" / "samples") == []


def test_failures_come_first(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(run / "scores" / "images")
    (tmp_path / "scores.json").write_text((run / "scores" / "scores.json").read_text())
    lines = (run / "scores" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    mixed = [json.loads(line) | {"correct": number % 2 == 0} for number, line in enumerate(lines)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    sections = [Page(section).tiles for section in re.findall(r"<section>.*?</section>", page, flags=re.DOTALL)]
    assert len([tiles for tiles in sections if tiles]) == 3  # a section a task
    for tiles in filter(None, sections):
        verdicts = ["wrong" in tile for tile in tiles]
        assert {*verdicts} == {True, False} and verdicts == sorted(verdicts, reverse=True)
    examples = [{"correct": number % 3 > 0, "category": "ab"[number % 2], "number": number} for number in range(100)]
    chosen = choose_examples(examples)
    assert [one["correct"] for one in chosen] == [False] * SHOWN + [True] * SHOWN
    assert {one["category"] for one in chosen[:2]} == {"a", "b"}


def test_words_of_a_model_are_no_markup(run: Path, tmp_path: Path) -> None:
    lines = (run / "scores" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "images").symlink_to(run / "scores" / "images")
    (tmp_path / "scores.json").write_text((run / "scores" / "scores.json").read_text())
    evil = [json.loads(line) | {"answer": "<script>alert(1)</script>"} for line in lines]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, evil)))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_the_verb_says_where_it_is(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "new" / "page.html")])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").is_file()
    with pytest.raises(ValueError, match="holds no metrics"):
        write_report(tmp_path / "new")


def test_curves(run: Path, tmp_path: Path) -> None:
    series = read_metrics(run / "unified" / "metrics.jsonl")
    assert list(series) == ["loss/text", "speed/images"] and len(series["loss/text"]) == 40
    curves = draw_curves(series | {"one/point": [(3, 1.0)]})
    assert list(curves) == ["loss", "speed"]
    assert all(svg.startswith("<svg") and svg.rstrip().endswith("</svg>") for svg in curves.values())
    assert draw_curves(series) == draw_curves(series)
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([0.0, 1.0], weight=0.5) == pytest.approx([0.0, 2 / 3])


def test_variants_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    for name, score in (("two-0", 0.5), ("two-1", 0.7), ("one-0", 0.1)):
        (tmp_path / name).mkdir()
        told = {"score": score, "interval": [0.0, 1.0], "count": 3, "details": {}, "measures": {}, "seconds": 1.0}
        (tmp_path / name / "scores.json").write_text(json.dumps({"finished": True, "tasks": {"answers": told}}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Side by side" in text and "0.600" in text and "± 0.141" in text
    assert "Side by side" not in write_report(run).read_text(encoding="utf-8")


def test_a_code_has_one_colour() -> None:
    codes = list(range(512))
    colours = colour_codes([codes, codes[::-1]])
    assert np.array_equal(colours[0], colours[1, ::-1])  # wherever it is in a map
    assert np.array_equal(colour_codes([[300, 7]])[0], colours[0, [300, 7]])  # and whatever else is in it
    assert len(np.unique(colours[0], axis=0)) == len(codes)


def test_images_that_are_kept() -> None:
    album = ImageRetention()
    right = Example("", "", "", "", True, image=np.zeros((2, 2, 3), np.uint8))
    wrong = Example("", "", "", "", False)
    assert all(album.keeps(right) for _ in range(PICTURES_KEPT))
    assert not album.keeps(right)
    assert [album.keeps(wrong) for _ in range(PICTURES_KEPT + 1)] == [True] * PICTURES_KEPT + [False]


def test_an_evaluation_replaces_the_images_of_an_earlier_one(tiny_engine: Engine, tmp_path: Path) -> None:
    evaluate(tiny_engine, [DigitsAnswers(1)], tmp_path, progress=False)
    (tmp_path / "images" / "old.png").touch()
    evaluate(tiny_engine, [DigitsAnswers(3)], tmp_path, progress=False, existing="replace")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"digits_answers-{n:05d}.png" for n in range(3)]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == [f"images/digits_answers-{n:05d}.png" for n in range(3)]
