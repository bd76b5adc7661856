"""The recipes of public benchmarks run as written: on a tiny model of random weights, with prompt files of a few lines, and
results as the scorers would write them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prompt_files import write_prompts
from stand_in_networks import Clip, Features, clip_processor
from test_readme import RECIPES, fenced_lines, run

from unimm.eval import image_networks
from unimm.eval.benchmarks.table import BENCHMARKS


@pytest.fixture
def workplace(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Benchmarks as they are cloned, with a few prompts; and pictures."""
    monkeypatch.chdir(tmp_path)
    files = write_prompts(tmp_path / "prompts")
    for name, path in {
        "geneval": "geneval/prompts/evaluation_metadata.jsonl",
        "dpg": "ELLA/dpg_bench/prompts",
        "wise": "WISE/data_verified",
        "coco": "annotations/captions_val2014.json",
    }.items():
        Path(path).parent.mkdir(parents=True)
        shutil.move(files[name], path)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    for name in ("val2014", "photos"):
        Path(name).mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(f"{name}/{number}.jpg")
    monkeypatch.setattr(image_networks, "open_inception", lambda path: Features())
    monkeypatch.setattr(image_networks, "open_clip", lambda name: lambda: (Clip(), clip_processor))
    monkeypatch.setenv("TORCH_HOME", "nowhere")
    return tmp_path


def write_results(name: str, out: Path) -> None:
    """Results of the benchmark's scorer for what was exported."""
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    if name == "geneval":
        results = [
            {"filename": f"{out}/{file}", "tag": line["facts"]["tag"], "correct": True, "metadata": json.dumps(line["facts"])}
            for line in lines
            for file in line["files"]
        ]
        (out / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    elif name == "dpg":
        (out / "results.txt").write_text("".join(f"{out}/{line['files'][0]}, 1.0, 0.5, 1.0, 0.5, 0.75\n" for line in lines))
    elif name == "wise":
        (out / "Results-qwen35").mkdir()
        results = [{"prompt_id": int(line["key"]), "Subcategory": "a", "score": 1.0} for line in lines]
        path = out / "Results-qwen35/natural_science_scores_results.jsonl"
        path.write_text("".join(json.dumps(result) + "\n" for result in results))


def test_the_guide_to_image_benchmarks_runs(workplace: Path) -> None:
    answers = workplace / "runs/t2i/color/annotation_blip/vqa_result.json"
    answers.parent.mkdir(parents=True)
    answers.write_text(json.dumps([{"question_id": 0, "answer": "0.5"}]))
    for line in fenced_lines(RECIPES / "image_benchmarks.md"):
        words = line.split()
        if "t2i-compbench" in words:
            line = line.replace("--out runs/t2i ", "--out runs/t2i_scores ")
        run(line)
        if words[1] == "export" and "--scores" not in words and "--shard" not in words:
            write_results(words[2], Path(words[words.index("--out") + 1]))
    assert json.loads(Path("runs/geneval/scores.json").read_text())["tasks"]["geneval"]
    assert {*json.loads(Path("runs/coco/image_scores.json").read_text())["tasks"]} == {"fid", "clip_score"}
    assert {*json.loads(Path("image_scores.json").read_text())["tasks"]} == {"rfid", "psnr", "ssim"}


def test_the_recipe_of_janus_pro_runs(workplace: Path, tiny_folder: Path) -> None:
    """Every line, from weights to the tables; the hub's model is a tiny one of random weights."""
    lines = fenced_lines(RECIPES / "reproduce_janus_pro.md")
    Path("pope").mkdir()
    questions = [{"question_id": n, "image": f"{n}.jpg", "text": "Is there a dog?", "label": "no"} for n in range(2)]
    Path("pope/coco_pope_random.json").write_text("".join(json.dumps(question) + "\n" for question in questions))
    Path("coco").mkdir()
    Path("val2014").rename("coco/val2014")
    for line in (line for line in lines if line.startswith("unimm ")):
        words = line.split()
        run(line.replace("deepseek-ai/Janus-Pro-7B", str(tiny_folder)).replace(" --from-pickle", ""))
        if words[1] == "export" and "--scores" not in words:
            write_results(words[2], Path(words[words.index("--out") + 1]))
    manifest = json.loads(Path("runs/janus_pro_7b/geneval/manifest.json").read_text())
    expected = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 42, "num_images": 4}
    assert {**manifest["settings"], **expected, "dtype": "bfloat16", "batch": 64} == manifest["settings"]
    known = json.loads(Path("runs/janus_pro_7b/dpg/scores.json").read_text())["tasks"]["dpg"]
    assert known["score"] == 75.0 and known["unit"] == "percent"
    assert "pope" in json.loads(Path("runs/janus_pro_7b/pope/scores.json").read_text())["tasks"]
    assert len([*Path("runs/janus_pro_7b/dpg/images").iterdir()]) == 2


def test_the_guide_names_every_benchmark() -> None:
    text = (RECIPES / "image_benchmarks.md").read_text(encoding="utf-8")
    for benchmark in BENCHMARKS.values():
        assert f"| `{benchmark.name}` |" in text
