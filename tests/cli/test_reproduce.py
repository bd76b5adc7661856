"""`unimm reproduce`: every part in turn, nothing twice, scores where they lie, and a table beside what is published."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prompt_files import write_prompts
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.eval.benchmarks.table import BENCHMARKS
from unimm.eval.report.published import benchmarks

PARTS = ("geneval", "dpg", "pope", "mmbench")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Prompts of both drawn benchmarks, and two questions in each of POPE's three files."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"photos/{number}.jpg")
    for name in ("random", "popular", "adversarial"):
        questions = [{"question_id": n, "image": f"{n}.jpg", "text": "Is there a dog?", "label": "no"} for n in range(2)]
        Path(f"coco_pope_{name}.json").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return write_prompts(tmp_path / "prompts")


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", "out=runs", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def line_of(output: str, title: str) -> list[str]:
    """The row of a benchmark in the table: ours, the paper's, others'."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return next(row[1:] for row in rows if row[0] == title and len(row) == 4)


def test_the_configuration_has_every_setting_of_every_part() -> None:
    config = compose_config("reproduce", [])
    for part in PARTS:
        assert config[part].published in benchmarks() and config[part].scorer
    for name in ("geneval", "dpg"):
        assert config[name].scorer.startswith(BENCHMARKS[name].source)
        assert {"num_images", "guidance_scale", "temperature", "top_k", "top_p"} <= config[name].keys()
    assert "pretrained=models/janus-pro-7b,prompts=janus,dtype=bfloat16 --tasks mmbench_en_dev" in config.mmbench.command


def test_a_dry_run_draws_asks_and_shows_a_table_and_does_nothing_twice(files: dict[str, Path], tiny_folder: Path) -> None:
    words = (f"init_from={tiny_folder}", f"geneval.prompts={files['geneval']}", "num_items=2", "geneval.num_images=2")
    told = call(*words)
    assert "runs/geneval: 4 images, 4 of them drawn now, 2 prompts." in told
    assert "DPG-Bench is skipped: name its own prompts with dpg.prompts=PATH (github.com/TencentQQGYLab/ELLA" in told
    assert "POPE is skipped" in told and "pope.paths=coco_pope_*.json pope.images=FOLDER" in told
    assert "POPE: not asked yet" in told and "DPG-Bench: not drawn yet" in told
    assert "GenEval: not scored yet (github.com/djghosh13/geneval @af4902f (Mask2Former" in told
    assert f"python evaluation/evaluate_images.py {Path.cwd()}/runs/geneval --outfile" in told
    assert f"python -m lmms_eval --model unimm --model_args pretrained={tiny_folder},prompts=janus" in told
    assert line_of(told, "GenEval") == ["-", "0.8 [1]", "0.7892 [2], 0.78 [3]"]
    assert "[1] Janus-Pro, technical report" in told and "num_items=2 ours are not the benchmarks' scores" in told

    drawn = {path: path.stat().st_mtime_ns for path in Path("runs/geneval").rglob("*.png")}
    killed, *kept = sorted(drawn)
    killed.write_bytes(killed.read_bytes()[:50])
    lines = [json.loads(line) for line in Path("runs/geneval/prompts.jsonl").read_text().splitlines()]
    results = [
        {
            "filename": f"runs/geneval/{file}",
            "tag": line["facts"]["tag"],
            "correct": True,
            "metadata": json.dumps(line["facts"]),
        }
        for line in lines
        for file in line["files"]
    ]
    Path("runs/geneval/results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    asked = ("pope.paths=coco_pope_*.json", "pope.images=photos", "num_items=null")
    told = call(words[0], *asked)  # without GenEval's prompts: its score is read all the same
    assert line_of(told, "GenEval")[0] == "1" and "GenEval is skipped" in told
    answers = Path("runs/pope/answers.jsonl").read_bytes()
    assert answers.count(b"\n") == 6 and line_of(told, "POPE")[0] != "-"
    assert line_of(told, "POPE")[0] == f"{100 * mean_f1():.4g}" and "of its 3 files" not in told

    told = call(*words)
    assert "4 images, 4 of them drawn now" in told  # the four of a batch, for the one that was broken
    assert [path.stat().st_mtime_ns for path in kept] == [drawn[path] for path in kept]
    assert "4 images, 0 of them drawn now" in call(*words)
    call(words[0], *asked)
    assert Path("runs/pope/answers.jsonl").read_bytes() == answers
    assert "begun with another settings.guidance_scale (5.0, now 3" in call(*words, "geneval.guidance_scale=3", code=2)


def mean_f1() -> float:
    others = json.loads(Path("runs/pope/scores.json").read_text())["tasks"]["pope"]["other_scores"]
    return sum(others[f"f1 {name}"]["score"] for name in ("random", "popular", "adversarial")) / 3


def test_mistakes_end_in_one_sentence(files: dict[str, Path], tiny_folder: Path) -> None:
    assert "figures_of is one of " in call("figures_of=zebra", code=2)
    assert "did you mean 'init_from'?" in call("pretrained=x", code=2)
    told = call(f"init_from={tiny_folder}", f"dpg.prompts={files['dpg']}", "prompt_format.user=User", code=2)
    assert "calls the roles of a prompt <|User|> and <|Assistant|>, not User and <|Assistant|>" in told
    assert not Path("runs").exists()


def test_without_any_files_it_says_what_to_name_and_opens_no_model() -> None:
    told = call("init_from=nowhere", "figures_of=Janus-Pro-1B")
    assert told.count("is skipped") == 3 and "Janus-Pro-1B, paper" in told
    assert "86.2" in told and "84.11" in told


def test_help_shows_an_example_and_every_key() -> None:
    told = call("--help")
    assert "Usage: unimm reproduce [GROUP=OPTION | KEY=VALUE]..." in told
    assert "Example: unimm reproduce init_from=models/janus-pro-7b" in told and "guidance_scale: 5.0" in told
