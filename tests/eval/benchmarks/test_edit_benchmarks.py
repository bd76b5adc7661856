"""Benchmarks of editing: files where the scorers look for them, sources in their own size, and their results as a table."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prompt_files import GEDIT, IMGEDIT, write_gedit, write_prompts

from unimm.data.template import PromptFormat
from unimm.eval.benchmarks.edits import GEDIT_KINDS
from unimm.eval.benchmarks.export import Export, ExportSettings, digest_of
from unimm.eval.benchmarks.scores import SCORES, score
from unimm.eval.benchmarks.table import BENCHMARKS
from unimm.inference.engine import Engine
from unimm.runtime.provenance import read_provenance


@pytest.fixture(scope="module")
def editor(tiny_engine: Engine) -> Engine:
    """A model that says that it was taught to edit."""
    return Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(edits="codes_last")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_prompts(tmp_path_factory.mktemp("edits") / "prompts")


def making(name: str, engine: Engine, files: dict[str, Path], out: Path) -> Export:
    benchmark, path = BENCHMARKS[name], files[name]
    settings = ExportSettings(num_images=1, guidance_scale=2.0, batch=2)
    return Export(benchmark, engine, benchmark.read(path), digest_of(path), settings, out)


def test_imgedit_is_written_as_its_scorer_reads_it(editor: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """basic_bench.py reads KEY.png; the image is the source but for the square at its centre, which is the engine's own."""
    assert making("imgedit", editor, files, tmp_path / "out").run() == 0
    for key, one in IMGEDIT.items():
        made, source = (Image.open(path).convert("RGB") for path in (tmp_path / f"out/{key}.png", files["imgedit"] / one["id"]))
        assert made.size == source.size == (40, 24)
        beside = np.r_[:8, 32:40]
        assert np.array_equal(np.asarray(made)[:, beside], np.asarray(source)[:, beside])
        said = read_provenance(tmp_path / f"out/{key}.png")
        assert said is not None and said["prompt"] == one["prompt"]
        (edited,) = editor.edit_images(source, one["prompt"], seed=said["seed"], guidance_scale=2.0)
        square = edited.resize((24, 24), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(made)[:, 8:32], np.asarray(square))
    assert making("imgedit", editor, files, tmp_path / "out").missing() == []


def test_gedit_has_sources_beside_results(editor: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """test_gedit_score.py takes those keys alone of which both are there."""
    assert making("gedit", editor, files, tmp_path / "out").run() == 0
    for key, kind, _, language, _ in GEDIT:
        folder = tmp_path / "out/unimm/fullset" / kind / language
        assert Image.open(folder / f"{key}.png").size == Image.open(folder / f"{key}_SRCIMG.png").size == (30, 20)


def test_models_that_do_not_edit_are_refused_at_once(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not taught to edit"):
        making("imgedit", tiny_engine, files, tmp_path / "out")
    with pytest.raises(ValueError, match="takes one image a prompt"):
        BENCHMARKS["gedit"].files(BENCHMARKS["gedit"].read(files["gedit"])[0], 2, "unimm")


def test_imgedit_is_the_mean_of_marks(editor: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    making("imgedit", editor, files, out).run()
    texts = {
        "1082": "Brief reasoning: none.\nPrompt Compliance: 1\nVisual Seamlessness: 4\nPhysical & Detail Fidelity: 5",
        "673": "Style Fidelity: 5\nContent Preservation: 4\nRendering Quality: 4",
    }
    (out / "result.json").write_text(json.dumps(texts))
    table = score(BENCHMARKS["imgedit"], [], out)
    assert table.total is not None and table.total.value == pytest.approx((3.33 + 4.33) / 2) and table.unit == "points"
    assert [(row.label, row.value) for row in table.rows] == [("adjust", 3.33), ("style", 4.33)]
    assert json.loads((out / SCORES).read_text())["tasks"]["imgedit"]["count"] == 2
    (out / "result.json").write_text(json.dumps({**texts, "673": {"error": "no answer"}}))
    with pytest.raises(ValueError, match="1 of 2 items are missing"):
        score(BENCHMARKS["imgedit"], [], out)
    (out / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="not what ImgEdit-Bench's scorer writes"):
        score(BENCHMARKS["imgedit"], [], out)


def test_gedit_is_the_mean_of_kinds(tmp_path: Path) -> None:
    """As calculate_statistics.py has it: the root of both marks for each image, then the mean of kinds."""
    file = tmp_path / "unimm_combined_gpt_score.csv"
    marks = {kind: (4.0 + number % 3, 9.0) for number, kind in enumerate(GEDIT_KINDS)}
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(
            ["source_image", "edited_image", "instruction", "sementics_score", "quality_score", "intersection_exist"]
        )
        for kind, values in marks.items():
            writer.writerow(["s.png", f"/x/unimm/fullset/{kind}/en/k.png", "a", *values, "True"])
    table = score(BENCHMARKS["gedit"], [str(file)], tmp_path / "out", partial=True)
    roots = [math.sqrt(semantics * quality) for semantics, quality in marks.values()]
    assert table.total is not None and table.total.value == pytest.approx(sum(roots) / len(roots))
    assert [row.label for row in table.rows] == [f"en{part} {name}" for part in ("", " intersection") for name in NAMES]
    assert table.missing == 1212 - len(GEDIT_KINDS)
    file.write_text("edited_image,sementics_score,quality_score\nx.png,1,2\n")
    with pytest.raises(ValueError, match="names no file of an export"):
        score(BENCHMARKS["gedit"], [str(file)], tmp_path / "out", partial=True)


LAST = "intersection_exist"
NAMES = ("semantics", "quality", "overall")


def test_tables_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no edits of 'dance' in 'en'"):
        BENCHMARKS["gedit"].read(write_gedit(tmp_path / "a/x.parquet", [("k", "dance", "a", "en", True)]))
    with pytest.raises(ValueError, match="is there twice"):
        BENCHMARKS["gedit"].read(write_gedit(tmp_path / "b/x.parquet", [GEDIT[0], GEDIT[0]]))
