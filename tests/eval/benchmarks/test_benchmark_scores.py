"""Scorers' results: their own totals, standard errors over prompts, and what is missing, twice or of another form."""

import json
import math
from pathlib import Path

import pytest
from prompt_files import GENEVAL2, lines, write_prompts

from unimm.eval.benchmarks.benchmark import Row, ScoreTable
from unimm.eval.benchmarks.scores import score
from unimm.eval.benchmarks.table import BENCHMARKS


def table_of(name: str, *paths: object, out: Path, partial: bool = True) -> ScoreTable:
    return score(BENCHMARKS[name], [str(path) for path in paths], out, partial)


def rows(table: ScoreTable) -> dict[str, Row]:
    return {row.label: row for row in table.rows}


def image_line(prompt: int, sample: int, tag: str, correct: bool) -> dict:
    said = {"filename": f"out/{prompt:05}/samples/{sample:04}.png", "tag": tag, "prompt": "a", "correct": correct}
    return {**said, "reason": "", "metadata": json.dumps({"prompt": prompt}), "details": "{}"}


def test_geneval_is_the_mean_of_its_kinds(tmp_path: Path) -> None:
    results = [image_line(0, sample, "single_object", sample != 0) for sample in range(4)]
    results += [image_line(1, sample, "single_object", True) for sample in range(4)]
    results += [image_line(2, sample, "counting", False) for sample in range(4)]
    path = lines(tmp_path / "results.jsonl", results)
    table = table_of("geneval", path, out=tmp_path / "out")
    assert [row.label for row in table.rows] == ["single_object", "counting"]
    single = rows(table)["single_object"]
    assert single.value == 0.875 and single.count == 8 and single.error == pytest.approx(0.125)
    assert table.total is None  # four kinds are missing
    assert table.missing == 553 * 4 - 12
    whole = [image_line(number, 0, tag, number % 2 == 0) for number, tag in enumerate([*KINDS, *KINDS, "position"])]
    table = table_of("geneval", lines(tmp_path / "whole.jsonl", whole), out=tmp_path / "out")
    assert table.total is not None
    kinds = [[number % 2 == 0 for number, tag in enumerate([*KINDS, *KINDS, "position"]) if tag == kind] for kind in KINDS]
    assert table.total.value == pytest.approx(sum(sum(kind) / len(kind) for kind in kinds) / 6)
    assert table.total.error == pytest.approx(math.hypot(*(row.error or 0 for row in table.rows)) / 6)


KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def test_missing_items_are_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "results.jsonl", [image_line(0, 0, "counting", True)])
    with pytest.raises(ValueError, match=r"results.jsonl: 2,211 of 2,212 items are missing: score them, or add --partial\.$"):
        table_of("geneval", path, out=tmp_path / "out", partial=False)
    assert not (tmp_path / "out").exists()


def test_dpg_reads_images_and_categories(tmp_path: Path) -> None:
    text = (
        "/data/a, b/0.png, 1.0, 0.5, 1.0, 0.5, 0.75\n/data/a, b/COCOval1.png, 0.25, 0.25, 0.25, 0.25, 0.25\n"
        "Model: images\nL1 category scores:\n\tglobal: 82.5\n\tentity: 90.0\nL2 category scores:\n\tentity - whole: 91.0\n"
        "Image path: /data\nSave results to: r.txt\nDPG-Bench score: 50.0\n"
    )
    (tmp_path / "results.txt").write_text(text)
    table = table_of("dpg", tmp_path / "results.txt", out=tmp_path / "out")
    assert table.total is not None and table.total.value == 50.0 and table.total.error == pytest.approx(25.0)
    assert [(row.label, row.value, row.error) for row in table.rows] == [("global", 82.5, None), ("entity", 90.0, None)]
    assert table.missing == 1063


def test_wise_weighs_its_categories_by_edition(tmp_path: Path) -> None:
    verified = [{"prompt_id": number, "Subcategory": "a", "score": float(number % 3 == 0)} for number in range(1, 1001)]
    table = table_of("wise", lines(tmp_path / "v.jsonl", verified), out=tmp_path / "out", partial=False)
    shares = [
        sum(number % 3 == 0 for number in range(first, last + 1)) / (last + 1 - first)
        for first, last in ((1, 400), (401, 520), (521, 640), (641, 760), (761, 880), (881, 1000))
    ]
    assert table.total is not None
    assert table.total.value == pytest.approx(0.4 * shares[0] + 0.12 * sum(shares[1:])) and table.total.count == 1000
    legacy = [{"prompt_id": n, "consistency": 2, "realism": 1, "aesthetic_quality": 0} for n in range(1, 1001)]
    table = table_of("wise", lines(tmp_path / "l.jsonl", legacy), out=tmp_path / "out2", partial=False)
    assert table.total is not None and table.total.value == pytest.approx(0.8) and rows(table)["TIME"].count == 167
    with pytest.raises(ValueError, match="two editions"):
        table_of(
            "wise", tmp_path / "v.jsonl", lines(tmp_path / "m.jsonl", [{**legacy[0], "prompt_id": 1001}]), out=tmp_path / "out3"
        )


def test_t2i_compbench_knows_categories_by_folders_and_labels(tmp_path: Path) -> None:
    answers = [{"question_id": number, "answer": f"{number % 10 / 10:.4f}"} for number in range(3000)]
    folder = tmp_path / "color/annotation_blip"
    folder.mkdir(parents=True)
    (folder / "vqa_result.json").write_text(json.dumps(answers))
    of_a_question = tmp_path / "color/annotation1_blip/VQA/result/vqa_result.json"  # the scorer leaves eight of them
    of_a_question.parent.mkdir(parents=True)
    of_a_question.write_text(json.dumps(answers))
    (tmp_path / "vqa_result.json").write_text(json.dumps(answers[:20]))
    table = table_of("t2i-compbench", tmp_path / "color", f"shape={tmp_path}/vqa_result.json", out=tmp_path / "out")
    assert [row.label for row in table.rows] == ["color (BLIP-VQA)", "shape"]
    assert rows(table)["shape"].value == pytest.approx(0.45) and table.missing == 6 * 3000 + 2980
    known = json.loads((tmp_path / "out/scores.json").read_text())
    assert {*known["tasks"]} == {"t2i-compbench/color_(BLIP-VQA)", "t2i-compbench/shape"} and not known["finished"]
    with pytest.raises(ValueError, match="say which category it is of"):
        table_of("t2i-compbench", tmp_path / "vqa_result.json", out=tmp_path / "out")


def test_geneval2_has_means_of_two_kinds(tmp_path: Path, tiny_engine) -> None:
    from unimm.eval.benchmarks.export import Export, ExportSettings, digest_of

    benchmark, path = BENCHMARKS["geneval2"], write_prompts(tmp_path / "prompts")["geneval2"]
    settings = ExportSettings(num_images=1, guidance_scale=1.0)
    Export(benchmark, tiny_engine, benchmark.read(path), digest_of(path), settings, tmp_path / "out").run()
    (tmp_path / "out/score_lists.json").write_text(json.dumps([[0.5, 1.0, 0.25], [0.9]]))
    table = table_of("geneval2", out=tmp_path / "out", partial=False)
    assert table.total is not None and table.total.value == pytest.approx(100 * (0.125 ** (1 / 3) + 0.9) / 2)
    assert rows(table)["Soft-TIFA AM"].value == pytest.approx(100 * (1.75 / 3 + 0.9) / 2)
    assert rows(table)["object (AM)"].value == pytest.approx(100 * (0.25 + 0.9) / 2)
    assert len(GENEVAL2) == table.expected
    (tmp_path / "out/score_lists.json").write_text(json.dumps([[0.5, 1.0], [0.9]]))
    with pytest.raises(ValueError, match="other questions"):
        table_of("geneval2", out=tmp_path / "out")


def test_oneig_has_five_dimensions(tmp_path: Path) -> None:
    (tmp_path / "alignment_prompt_score_EN_2026.csv").write_text(",janus\nanime_000,0.5\nhuman_001,1.0\nhuman_002,\n")
    (tmp_path / "text_score_EN_2026.csv").write_text(",ED,CR,WAC,text score\njanus,80,0.1,0.2,0.424\n")
    table = table_of("oneig", tmp_path, out=tmp_path / "out")
    assert [(row.label, row.value, row.count) for row in table.rows] == [("alignment", 0.75, 2), ("text", 0.424, 0)]
    assert table.missing == 3


def test_scores_are_written_as_an_evaluation_writes_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "results.jsonl", [image_line(n, 0, KINDS[n % 6], True) for n in range(12)])
    table_of("geneval", path, out=tmp_path / "out")
    known = json.loads((tmp_path / "out/scores.json").read_text())
    task = known["tasks"]["geneval"]
    assert task["score"] == 1.0 and task["unit"] == "share" and task["standard_error"] == 0.0
    assert task["count"] == 12 and {*task["details"]} == {*KINDS} and known["missing"] == 2200


WRONG = '{"filename": "a/00000/samples/0000.png", "correct": 1}\n'


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "coco"])
@pytest.mark.parametrize("text", ["", "[]", "[1]", '{"a": 1}\n', "a, b\n", WRONG])
def test_results_of_another_form_are_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / ("alignment_prompt_score_EN.csv" if name == "oneig" else "results.txt")
    path.write_text(text)
    with pytest.raises(ValueError) as refused:
        table_of(name, f"color={path}" if name.startswith("t2i") else path, out=tmp_path / "out")
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_is_twice_or_elses_is_refused(tmp_path: Path) -> None:
    twice = lines(tmp_path / "twice.jsonl", [image_line(0, 0, "counting", True)] * 2)
    with pytest.raises(ValueError, match=r"twice.jsonl, line 2: 00000/samples/0000.png is there twice"):
        table_of("geneval", twice, out=tmp_path / "out")
    with pytest.raises(ValueError, match="there is no such file"):
        table_of("geneval", tmp_path / "nothing.jsonl", out=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    good = lines(tmp_path / "good.jsonl", [image_line(0, 0, "counting", True)])
    with pytest.raises(ValueError, match="is not an export of unimm"):
        table_of("geneval", good, out=tmp_path / "mine")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds no results of GenEval"):
        table_of("geneval", out=tmp_path / "nothing")
    more = lines(tmp_path / "more.jsonl", [{"prompt_id": number, "score": 1} for number in range(1, 1003)])
    with pytest.raises(ValueError, match=r"2 items are none of this export's, such as 1001"):
        table_of("wise", more, out=tmp_path / "nothing")
