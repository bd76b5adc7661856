"""Documents are executed: README's and the recipes' commands and examples run, at toy size; their links and paths exist."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import typer
from omegaconf import OmegaConf
from PIL import Image
from typer.testing import CliRunner
from users_files import make_all, make_preferences

from unimm.cli.app import app
from unimm.cli.compose import compose_config
from unimm.data.worlds.scenes import make_scene, render
from unimm.eval import suites
from unimm.eval.tasks.emoji import check_font
from unimm.inference.decode.request import Request

pytestmark = pytest.mark.usefixtures("small_windows", "few_texts", "configurations_read_once")

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
DOCUMENTS = sorted([ROOT / "README.md", *RECIPES.glob("*.md"), ROOT / "unimm/demo/README.md"])
RUNNABLE = ("caption", "answer", "generate")
"""Commands that take no longer with a tiny model than a test may."""


def fenced(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def fenced_lines(document: Path) -> list[str]:
    """The shell lines of a document."""
    return [line for block in fenced(document, "bash") for line in block.splitlines()]


def shell_lines(*first_words: str, documents: list[Path] = DOCUMENTS) -> list[str]:
    """The shell lines of documents that begin with these words."""
    lines = [line for document in documents for line in fenced_lines(document)]
    return [line for line in lines if line.split()[: len(first_words)] == list(first_words)]


def run(line: str, *more: str) -> None:
    """A shell line, as it stands, with more words behind it."""
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], *more])
    assert result.exit_code == 0, f"{line}\n{result.output}"


def execute(example: str, names: dict) -> None:
    """An example in Python."""
    exec(compile(example, "example.py", "exec"), names)


@pytest.fixture
def workplace(
    tiny_folder: Path, clips_place: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder as users have it after the quickstart, the demo and some trainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    trained = [f"runs/{name}/model" for name in ("quickstart", "photos", "few", "keep/full", "emoji", "life/finetune")]
    trained += ["runs/several/compare/model", "runs/several/few_shot/model"]
    for model in (*trained, "models/janus-pro-1b"):
        Path(model).parent.mkdir(parents=True)
        Path(model).symlink_to(tiny_folder)
    Path("runs/clips").mkdir()
    Path("runs/clips/model").symlink_to(clips_place / "model")
    Path("runs/clips_files").symlink_to(clips_place / "clips_files")
    Path("runs/demo").mkdir()
    for name in ("photo.png", "digit.png"):
        picture.save(f"runs/demo/{name}")
    return tmp_path


# -- README ---------------------------------------------------------------------------------------------------------------


def test_the_two_commands_stand_there_as_people_look_for_them() -> None:
    lines = fenced_lines(ROOT / "README.md")
    assert next(line for line in lines if "unimm quickstart" in line) == "pip install -e . && unimm quickstart"
    assert next(line for line in lines if "pytest" in line) == 'pip install -e ".[test]" && pytest'


def test_the_readme_is_short_and_shows_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).stat().st_size < 200_000


def test_the_readme_runs_as_written_in_a_fresh_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the two commands that install, in their order, with the demo model: photo.png is there when it is used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_MODEL", raising=False)
    (example,) = fenced(ROOT / "README.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    first, *others = (line for line in fenced_lines(ROOT / "README.md") if not line.startswith("pip "))
    run(first)
    execute(example, {})
    assert Image.open("drawing.png").size == (64, 64)
    assert "circle" in capsys.readouterr().out
    for line in others:
        run(line)
    assert len(list(Path("drawings").iterdir())) == 4


def test_the_file_map_names_every_part_of_the_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in sorted(path for path in (ROOT / "unimm").iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"(unimm/{part.name})" in text, part.name


# -- every document -------------------------------------------------------------------------------------------------------


WITH_A_MODEL_OF_THEIR_OWN = ("--size", "runs/flow/")
"""What lines hold that other tests run, with a model that was taught so (test_sizes_recipe, test_flow_recipe)."""


@pytest.mark.parametrize(
    "line",
    [
        line
        for verb in RUNNABLE
        for line in shell_lines("unimm", verb)
        if not any(own in line for own in WITH_A_MODEL_OF_THEIR_OWN)
    ],
)
def test_shell_lines_run(line: str, workplace: Path) -> None:
    run(line)


def test_every_command_and_its_options_are_there() -> None:
    """All lines, those too that take hours: the shell reads them without a complaint."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    lines = shell_lines("unimm")
    assert {line.split()[1] for line in lines} >= {*RUNNABLE, "eval", "train", "quickstart", "convert", "average"}
    for line in lines:
        verb, *words = shlex.split(re.sub(r"\$\w+", "1", line))[1:]  # a loop's variables
        commands[verb].make_context(verb, words)


COMPOSED = ("train", "demo", "two_encoders", "scaling", "projectors", "contrastive", "frozen_parts", "large_pictures")
COMPOSED = [RECIPES / f"{name}.md" for name in (*COMPOSED, "several_images", "locate", "interleaved", "edit", "sizes")]
"""Their trainings take hours; those of the other pages are run at toy size."""


EVERYWHERE = {"image_tokenizer", "codes", "init_from", "out", "seed"}


def test_long_trainings_compose() -> None:
    """Lines that differ in values alone, once; tests/test_conf.py composes every experiment."""
    lines = [line for verb in ("train", "train-tokenizer", "encode") for line in shell_lines("unimm", verb, documents=COMPOSED)]
    composed = set()
    for line in lines:
        verb, *words = shlex.split(line)[1:]
        if "--multirun" in words:  # a sweep: the first value of each
            words = [word if "[" in word else word.split(",")[0] for word in words if word != "--multirun"]
        chosen = [word.partition("=")[2] for word in words if word.startswith("+experiment=")]
        assert all((ROOT / f"conf/experiment/{name}.yaml").is_file() for name in chosen), line
        keys = (verb, *sorted({word.partition("=")[0] for word in words} - EVERYWHERE))
        if keys not in composed:
            assert compose_config(verb.replace("-", "_"), words).out
        composed.add(keys)
    assert len(lines) > 20


KEY = re.compile(r"\b((?:trainer|tokenizer_trainer|validation|tracking|lora|model)\.[a-z_.]+)=")


def test_keys_in_texts_exist() -> None:
    """What a page says can be overridden, in its text too, is in the configuration that commands compose."""
    config = OmegaConf.create({})
    for root, words in (("train", ["lora=default", "codes=x"]), ("train_tokenizer", [])):
        config = OmegaConf.merge(config, OmegaConf.to_container(compose_config(root, words)))
    pages = [page for page in DOCUMENTS if page.name != "LOG.md"]
    named = {(page.name, key) for page in pages for key in KEY.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 30
    for page, key in sorted(named):
        parent, _, last = key.rpartition(".")
        assert last in OmegaConf.select(config, parent), f"{page} names {key}"


def test_launchers_take_the_overrides_of_the_command() -> None:
    launched = shell_lines("accelerate", "launch") + shell_lines("torchrun")
    assert len(launched) >= 2
    for line in launched:
        assert " -m unimm.train " in line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_every_page_is_in_the_index() -> None:
    index = (RECIPES / "README.md").read_text(encoding="utf-8")
    for page in RECIPES.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


PATH = re.compile(r"(?<![\w./-])((?:unimm|conf|recipes|tests|notebooks)/[\w./-]*\w)(?![\w*]*[*{(])")
MADE_ELSEWHERE = ("unimm/conf", "tests/that", "conf/data/NAME")
"""Of the wheel, and names that stand for others."""


def test_paths_in_texts_exist() -> None:
    """In documents, comments of configurations, docstrings: a file that is named is there."""
    files = [
        *DOCUMENTS,
        *(ROOT / "conf").rglob("*.yaml"),
        *(ROOT / "unimm").rglob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    for file in files:
        if file == RECIPES / "LOG.md":  # tells of its days, and of files that are gone
            continue
        for path in PATH.findall(file.read_text(encoding="utf-8")):
            assert (ROOT / path).exists() or path.startswith(MADE_ELSEWHERE), f"{file.relative_to(ROOT)} names {path}"


# -- the guides -----------------------------------------------------------------------------------------------------------


def test_the_serving_guide_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load, stream, paint, extend, serve, coroutines, loop = fenced(RECIPES / "serve.md", "python")
    names: dict = {}
    execute(load, names)
    execute(stream, names)
    assert names["progress"].is_final and Image.open("preview.png").size == (64, 64)
    assert names["completion"].finish_reason in ("stop", "length")
    execute(paint, names)
    width, height = names["picture"].size
    assert Image.open("painted.png").size == (width, height)
    execute(extend, names)
    assert Image.open("wide.png").size == (width + 32, height)
    execute(serve.replace("8000", "0"), names)
    with names["server"] as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(address, Path("runs/demo/photo.png").read_bytes(), timeout=60) as answer:
            assert json.load(answer)["caption"] == names["engine"].caption("runs/demo/photo.png")
        server.shutdown()
        thread.join()
    engine = names["engine"]
    try:
        execute(coroutines, names)
    finally:
        engine.decoder.stop()
    assert names["text"] and names["drawing"].size == (64, 64)
    names["request"] = Request(engine.template.draw("a", num_codes=4))
    execute(loop, names)
    assert names["done"] and "num_rows=0" in capsys.readouterr().out


def test_the_evaluation_guide_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module, its lines and its program; suites have an item or two a task."""
    small = {name: dataclasses.replace(task, glance=1, brief=1, quick=2, full=2) for name, task in suites.TASKS.items()}
    monkeypatch.setattr(suites, "TASKS", small)
    monkeypatch.setattr(sys, "path", [*sys.path, str(workplace)])
    module, program = fenced(RECIPES / "evaluate.md", "python")
    Path("my_tasks.py").write_text(module)
    try:
        for line in fenced_lines(RECIPES / "evaluate.md"):
            run(line.replace("num_items=20", "num_items=2").replace("Counting ", "'Counting?num_items=2' "))
        execute(program.replace("num_items=8", "num_items=2"), {})
    finally:
        sys.modules.pop("my_tasks", None)
    read = {name: json.loads(Path(f"runs/{name}/scores.json").read_text())["tasks"] for name in ("eval", "answers", "both")}
    assert [*read["eval"]] == [*small] and [*read["both"]] == ["digits_answers", "counting"]
    assert [*read["answers"]] == ["shapes_answers", "digits_answers"] and Path("runs/eval/report.html").is_file()


def test_the_benchmark_guide_runs(workplace: Path, tiny_folder: Path, picture: Image.Image) -> None:
    """Its tasks on files of an item or two at the places that it names, with a tiny model, and its program."""
    for folder in ("vqa", "pope", "coco/val2014", "coco/annotations", "docvqa/images", "chartqa/png"):
        Path(folder).mkdir(parents=True)
    name = "COCO_val2014_000000000001.jpg"
    for folder in ("coco/val2014", "docvqa/images", "chartqa/png"):
        picture.save(f"{folder}/{name}")
    asked = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 1, "question": "What is it?"}]}
    given = {"annotations": [{"question_id": 1, "answer_type": "other", "answers": [{"answer": "a dog"}] * 10}]}
    told = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "A dog."}]}
    statement = {"question_id": 1, "image": name, "text": "Is there a dog?", "label": "yes"}
    contents = {
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json": asked,
        "vqa/v2_mscoco_val2014_annotations.json": given,
        "coco/annotations/captions_val2014.json": told,
        "pope/coco_pope_random.json": statement,
        "docvqa/val_v1.0_withQT.json": {"data": [{"questionId": 1, "question": "Who?", "image": name, "answers": ["A dog"]}]},
        "chartqa/test_human.json": [{"imgname": name, "query": "How many?", "label": "4"}],
        "held_out.jsonl": {"text": "A dog runs."},
    }
    for path, content in contents.items():
        Path(path).write_text(json.dumps(content) + "\n")
    lines = [line for line in fenced_lines(RECIPES / "benchmarks.md") if line.startswith("unimm eval ")]
    for line in lines:
        few = line.replace("ask=questions", "ask=questions&n=6").replace("--task hallucination ", '--task "hallucination?n=4" ')
        run(few, "--model", str(tiny_folder), "--precision", "fp32")
    found = {name for folder in Path("runs").glob("*/scores.json") for name in json.loads(folder.read_text())["tasks"]}
    assert found == {"vqa", "pope", "docvqa", "chartqa", "captions", "perplexity", "hallucination", "hallucination_questions"}
    execute(fenced(RECIPES / "benchmarks.md", "python")[0], {})


def test_the_hallucination_guide_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its examples with the demo, which says the same of a scene when it has looked again; its lines on few items."""
    Image.fromarray(render(make_scene(0, "test", 1))).save("runs/demo/photo.png")
    names: dict = {}
    for example in fenced(RECIPES / "hallucination.md", "python"):
        execute(example, names)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == names["engine"].caption("runs/demo/photo.png") and said[1] in said[2]
    for line in fenced_lines(RECIPES / "hallucination.md"):
        if line.startswith("unimm eval "):
            run(re.sub(r"n=\d+", "n=2", line.replace(" demo ", f" {Path('models/janus-pro-1b').resolve()} ")))
    run(shell_lines("unimm", "compare", documents=[RECIPES / "hallucination.md"])[0])


def test_the_code_of_the_extending_guide_is_that_of_the_package_in_the_tests() -> None:
    """Which tests/extension runs; so none of it is out of date."""
    package = ROOT / "tests/extension"
    files = [path.read_text(encoding="utf-8") for path in package.rglob("*") if path.suffix in (".py", ".yaml")]
    blocks = [block for language in ("python", "yaml") for block in fenced(RECIPES / "extend.md", language)]
    assert len(blocks) >= 6
    for block in blocks:
        assert any(block in file for file in files), block


DRAWN = ("shapes_draw", "digits_draw")
TOY = {
    "train-tokenizer": [
        *("tokenizer.channel_multipliers=[1,1,1,1]", "tokenizer.num_res_blocks=1", "images.batch_size=4", "num_validation=4"),
        *("tokenizer_trainer.budget.max_steps=2", "tokenizer_trainer.num_workers=0", "device=cpu"),
    ],
    "encode": ["device=cpu"],
    "train": ["trainer.budget.max_steps=2", "trainer.num_workers=0", "trainer.compile=false", "device=cpu"],
}


@pytest.mark.slow
def test_the_extending_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package and its configurations in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine").symlink_to(ROOT / "tests/extension/conf")
    Path("stripes").symlink_to(ROOT / "tests/extension/stripes")
    for line in fenced_lines(RECIPES / "extend.md"):
        monkeypatch.setattr(sys, "argv", ["unimm"])
        run(line, *TOY.get(line.split()[1], []))
    assert Path("runs/stripes/scores/scores.json").is_file()


@pytest.mark.slow
def test_the_training_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's life in four lines, from a dozen images and with a model of one layer."""
    monkeypatch.chdir(tmp_path)
    small = ["model.trunk.num_hidden_layers=1", "model.vision.num_layers=1", "whitened_images=8", "text_vocabulary=300"]
    lines = fenced(RECIPES / "train.md", "bash")[0].splitlines()
    assert [line.split()[1] for line in lines] == ["train-tokenizer", "encode", "train", "train"]
    for line in lines:
        sources = () if "train-tokenizer" in line else ("shapes", "digits") if "worlds/vision" in line else DRAWN
        few = [f"data.sources.{name}.dataset.dataset.num_records={8 if 'shapes' in name else 4}" for name in sources]
        monkeypatch.setattr(sys, "argv", ["unimm"])
        run(line, *TOY[line.split()[1]], *few, *(small if " train " in line and "init_from" not in line else ()))
    assert Path("runs/mine/unified/model/config.json").is_file()


def test_the_recipe_that_keeps_what_was_known_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that encodes or trains, with a tiny model, few pictures and one step."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    few = [f"data.sources.{name}.dataset.dataset.num_records=4" for name in ("old_shapes_draw", "old_count", "old_digits_draw")]
    few += [f"data.sources.{name}.view.num_turns=1" for name in ("old_shapes_talk", "old_digits_talk")]
    for line in fenced_lines(RECIPES / "keep_what_was_known.md"):
        verb = line.split()[1]
        if verb in TINY_RUN:
            small = [*TINY_RUN[verb], *(["validation.num_items=2"] if verb == "train" else [])]
            line = line.replace("=demo", f"={tiny_folder}").replace("num_items=80", "num_items=2")
            run(line, *small, *few)
    for name in ("full", "lora"):
        scores = json.loads(Path(f"runs/keep/{name}/scores_before.json").read_text())["scores"]
        assert {*scores} == {"shapes_answers", "shapes_drawings"}
    assert Path("runs/keep/lora/adapter").is_dir() and Path("runs/keep/mine/model").is_dir()


@pytest.mark.slow
def test_the_preferences_recipe_runs(tiny_folder: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line with a tiny model, which judges itself, two prompts and two steps."""
    make_preferences(Path("preferences"))
    Path("prompts.txt").write_text("a red circle\na blue cross\n")
    pairs = ["--judge", "vqa_score", "--margin", "1e-9", "--min-best", "0", "-n", "2", "--device", "cpu"]
    for line in fenced_lines(RECIPES / "preferences.md"):
        monkeypatch.setattr(sys, "argv", ["unimm"])
        if not line.startswith("unimm") or "runs/judges --baseline" in line:
            continue  # a loop of evaluations over six trainings, of which one runs here
        line = line.replace("--multirun ", "").replace("judge=self,checker seed=0,1,2", "judge=checker")
        if "unimm data prefer" in line:
            small = [*pairs, *([] if "prompts.txt" in line else ["--limit", "2"]), "--model", str(tiny_folder)]
            small[1] = "look_again" if " captions " in line else "vqa_score"
        else:
            small = [f"init_from={tiny_folder}", *(TINY_RUN["train"] if " train " in line else [])]
        run(line, *small)
    assert Path("runs/prefer/janus_both/model").is_dir() and Path("runs/prefer/pairs/best_and_worst.png").is_file()
    assert Path("runs/judges/checker-0/model").is_dir()


@pytest.mark.slow
def test_the_grpo_recipe_runs(tiny_folder: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line with a tiny model, two prompts, two rollouts of each and one step."""
    Path("prompts.txt").write_text("a red circle\na blue cross\n")
    few = ["rollouts.num_prompts=2", "rollouts.group_size=2", "rollouts.judged=1", "trainer.num_micro_batches=1"]
    for line in fenced_lines(RECIPES / "grpo.md"):
        monkeypatch.setattr(sys, "argv", ["unimm"])
        run(line, *TINY_RUN["train"], *few, f"init_from={tiny_folder}")
    assert Path("runs/grpo/shapes/model/config.json").is_file() and Path("runs/grpo/janus_t2i_r1/model").is_dir()


@pytest.mark.slow
def test_the_video_recipe_runs(tiny_folder: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line but that of paper size, with a tiny model, two clips and one step; and its program."""
    Path("runs/clips/model").unlink()
    Path("runs/clips_files").unlink()
    for line in fenced_lines(RECIPES / "video.md"):
        small = {"train": TINY_RUN["train"], "eval": ["--device", "cpu"]}.get(line.split()[1], [])
        if "clips/unified" in line:
            small = [
                *small,
                f"init_from={tiny_folder}",
                "prompt_format.video.frame_positions=1",
                "trainer.budget.max_minutes=null",
            ]
        line = re.sub(r"--task (clips_\w+)", r"--task \1?n=2", line).replace("answers?num_frames", "answers?n=2&num_frames")
        monkeypatch.setattr(sys, "argv", ["unimm"])
        if "llava_video" not in line:
            run(line, *small)
    assert len(json.loads(Path("runs/clips/scores/scores.json").read_text())["tasks"]) == 5
    assert "clips_answers_1_frames" in json.loads(Path("runs/clips/one_frame/scores.json").read_text())["tasks"]
    for example in fenced(RECIPES / "video.md", "python"):
        execute(example, {})


@pytest.mark.slow(seconds=30)
@pytest.mark.skipif(not check_font(), reason="no font with emoji (fonts-noto-color-emoji), or no package emoji")
def test_the_emoji_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line, with four emoji and two steps."""
    monkeypatch.chdir(tmp_path)
    few = {
        "train-tokenizer": ["images.num_emoji=4"],
        "encode": ["data.num_emoji=4", "data.sources.emoji_draw.dataset.dataset.num_records=8"],
        "train": ["data.num_emoji=4", "data.sources.emoji_draw.dataset.dataset.num_records=8", "text_vocabulary=300"],
    }
    for line in fenced_lines(RECIPES / "emoji.md"):
        verb = line.split()[1]
        line = line.replace("held_out=true", "held_out=true&num_emoji=40&num_items=2")
        line = re.sub(r"(Emoji\w+)(?=\s)", r'"\1?num_emoji=4&num_items=2"', line).replace('unimm.eval:"', '"unimm.eval:')
        monkeypatch.setattr(sys, "argv", ["unimm"])
        toy = [word for word in TOY.get(verb, []) if not word.startswith("tokenizer.")]  # sizes are the demo's
        run(line.replace(" -n 4", ""), *toy, *few.get(verb, []))
    scores = json.loads(Path("runs/emoji/eval/scores.json").read_text())["tasks"]
    assert {*scores} == {"emoji_names", "emoji_answers", "emoji_drawings", "emoji_held_out"}
    assert scores["emoji_drawings"]["measures"]["judge_accuracy"] > 0.9
    assert Path("runs/emoji/report.html").is_file()


def test_the_recipe_of_large_pictures_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its toy with tiles, with a tiny model that sees 16 px, small pages and one step, beside a copy of its scores; what sees
    one square, and the lines at the paper's size, compose."""
    monkeypatch.chdir(tmp_path)
    small = ["data.font_size=10", "data.sizes=[[128,96]]", "data.languages=[en]", "data.sources.pages_talk.view.num_turns=2"]
    longer = ["model.trunk.max_position_embeddings=512", "trainer.num_rows=1", "num_samples=1", *small]
    more = {"data": ["num_workers=0", "image_positions=1", *small], "train": [*TINY_RUN["train"], *longer]}
    begin = [f"init_from={tiny_folder}", "data.sources.slips_talk.dataset.sizes=[[48,48]]"]
    toys = [line for block in fenced(RECIPES / "large_pictures.md", "bash")[:2] for line in block.splitlines()]
    assert [line.split()[1] for line in toys] == ["data", "train", "train", "train", "eval", "eval", "compare"]
    for line in (line for line in toys if "pages/fixed" not in line or "compare" in line):
        if "compare" in line:
            shutil.copytree("runs/pages/tiles/eval", "runs/pages/fixed/eval")
        line = line.replace("=demo", f"={tiny_folder}").replace("--sample 200", "--sample 4")
        line = re.sub(r"pages_(text|questions)(?= )", r"pages_\1?n=2&font_size=10&sizes=[[128,96]]", line)
        run(re.sub(r"--task (\S+)", r"--task '\1'", line), *more.get(line.split()[1], []), *begin if "slips" in line else [])
    told = json.loads(Path("runs/inspect/inspection.json").read_text())["data_sets"]["pages_talk"]
    assert told["images"]["tiles"]["count"] == 4 and told["images"]["tiles"]["max"] <= 9
    kept = json.loads(Path("runs/pages/tiles/model/config.json").read_text())["unimm"]["prompt_format"]["tiles"]
    assert kept == {"max_tiles": 9, "min_tiles": 1, "thumbnail": True}


LINES = fenced_lines(RECIPES / "your_own_data.md")
LEARNING = [line for line in LINES if line.split()[1] in ("encode", "train") and "runs/few" not in line]
TINY_RUN = {
    "encode": ["device=cpu"],
    "train": [
        "device=cpu",
        "trainer.budget.max_steps=1",
        "trainer.compile=false",
        "trainer.precision='no'",
        "trainer.num_positions=256",
        "trainer.num_workers=0",
    ],
}


def test_the_recipe_of_several_images_runs(
    tiny_folder: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both trainings from a tiny model, with their evaluations, its questions and its program."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    for name in ("photo.png", "digit.png"):
        picture.save(f"runs/demo/{name}")
    lines = [line for line in fenced_lines(RECIPES / "several_images.md") if "few_shot_short" not in line]
    for line in lines:
        if line.startswith("unimm train"):
            few = [*TINY_RUN["train"], "validation.num_items=2", "trainer.num_rows=1", f"init_from={tiny_folder}"]
            run(line, *few)
        if line.startswith("unimm eval"):
            run(
                re.sub(r"--task (\w+)", r"--task \1?n=2", line.replace("?pictures=3", "?pictures=3&n=2")), "--precision", "fp32"
            )
    read = [
        json.loads(Path(f"runs/several/{name}/scores/scores.json").read_text())["tasks"] for name in ("compare", "few_shot")
    ]
    assert [*read[0]] == ["several_compare", "several_compare_3", "several_differs"]
    assert {f"{count} examples" for count in (0, 2, 4, 8)} < {*read[1]["few_shot"]["details"]}
    assert "8 less 0 examples" in read[1]["few_shot"]["other_scores"]
    execute(fenced(RECIPES / "several_images.md", "python")[0], {})


def test_a_users_own_data_is_learned_from(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the recipe, in its order, with a tiny model and one step."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    assert len(LEARNING) == 12
    for line in (line for line in LINES if line.split()[1] == "data"):
        run(line, "num_workers=0")
    assert Path("runs/photos/inspect/inspection.html").is_file()
    for line in LEARNING:
        run(line, *TINY_RUN[line.split()[1]])
    for name in ("photos", "jsonl", "parquet", "webdataset", "shards", "llava", "text"):
        assert (tmp_path / "runs" / name / "model/config.json").is_file(), name
    assert json.loads(Path("runs/photos/codes/image_folder/manifest.json").read_text())["first_key"] == "a.png"


FEW = {
    "train-tokenizer": [
        *("tokenizer_trainer.budget.max_steps=2", "images.batch_size=2", "num_validation=2", "device=cpu"),
        *("tokenizer_trainer.precision='no'", "tokenizer_trainer.compile=false"),
    ],
    "encode": ["device=cpu", "precision='no'"],
    "train": ["trainer.budget.max_steps=2", "num_samples=2", "device=cpu", "trainer.precision='no'", "trainer.compile=false"],
    "generate": ["--device", "cpu"],
}


@pytest.mark.slow
def test_a_few_pictures_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the image tokenizer, and two of the demo model; and the report shows what came of both."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in LINES if "runs/few" in line]
    assert [line.split()[1] for line in lines] == ["train-tokenizer", "encode", "train", "generate", "report"]
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["unimm"])
        run(line, *FEW.get(line.split()[1], []))
    assert len(list(Path("runs/few/drawings").iterdir())) == 1
    page = Path("runs/few/report.html").read_text(encoding="utf-8")
    assert page.count('alt="drawings"') == page.count('alt="reconstructions"') == 1


def test_a_janus_is_adapted(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the recipe of adapters, in its order, with a tiny model and one step."""
    make_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/janus-pro-1b").symlink_to(tiny_folder)
    recipe = RECIPES / "lora.md"
    lines = fenced_lines(recipe)
    assert [line.split()[1] for line in lines] == ["encode", "train", "train", "convert"]
    for line in lines:
        run(line, *TINY_RUN.get(line.split()[1], []))
    names: dict = {}
    for example in fenced(recipe, "python"):
        execute(example, names)
    assert Path("drawing.png").is_file() and type(names["model"]).__name__ == "PeftModel"
