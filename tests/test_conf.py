"""Every configuration is used: each composes with its root, each node builds, and a typo ends in one sentence."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from janus_cases import PRO_1B, pro_7b
from omegaconf import DictConfig, OmegaConf, open_dict
from typer.testing import CliRunner
from users_files import make_all

from unimm.checkpoints.deepseek_config import as_janus_config
from unimm.checkpoints.janus_config import from_janus_config
from unimm.cli import builders
from unimm.cli.app import app
from unimm.cli.builders import build_model, build_prompt_format, build_text_tokenizer, fill_sizes, is_coded, without_codes
from unimm.cli.choices import command_name, conf_folder
from unimm.cli.compose import build, compose_config
from unimm.cli.encode import _coded_datasets
from unimm.cli.errors import plain_errors
from unimm.data.records import LATENTS
from unimm.data.template import PromptFormat, Template
from unimm.data.text import TextTokenizer
from unimm.data.video.choosing import VideoFormat
from unimm.eval.suites import VALIDATION_TASKS
from unimm.eval.tasks.emoji import check_font
from unimm.eval.validation import ValidationConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.lora import LoraConfig
from unimm.models.ports.latents import LatentsConfig
from unimm.training.image_tokenizer.trainer import TokenizerTrainerConfig
from unimm.training.objectives.likelihood import Objective
from unimm.training.trackers import TrackingConfig
from unimm.training.trainable_parts import freeze, stage_table
from unimm.training.trainer import TrainerConfig

pytestmark = pytest.mark.usefixtures("configurations_read_once")

CONF = conf_folder()
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml"))
NODES = "data/nodes"
"""Pieces that other configurations are put together from: nobody chooses them."""
OPTIONS = sorted(
    name for path in CONF.glob("*/**/*.yaml") if not (name := str(path.relative_to(CONF).with_suffix(""))).startswith(NODES)
)
if not check_font():  # without a font with emoji, or their names
    OPTIONS = [name for name in OPTIONS if name not in ("data/emoji", "images/emoji")]
GIVEN = {
    "train": ["image_tokenizer=x", "codes=x"],
    "train_tokenizer": [],
    "encode": ["image_tokenizer=x"],
    "encode_features": ["init_from=x"],
    "data_inspect": [],
    "data_convert": ["to=jsonl", "out=x"],
    "reproduce": [],
}
"""What a root cannot know: folders that the user has."""
FILES = {
    "images/image_folder": ["images.folder=photos", "images.validation_folder=photos"],
    "data/image_folder": ["data.folder=photos"],
    "data/image_folder_with_replay": ["data.folder=photos"],
    "data/flow": ["data.paths=captions/captions.jsonl"],
    "data/jsonl": ["data.paths=captions/captions.jsonl"],
    "data/csv": ["data.paths=csv/captions.csv"],
    "data/llava": ["data.paths=llava/llava.json"],
    "data/pairs": ["data.paths=captions/captions.jsonl"],
    "data/parquet": ["data.paths=tables"],
    "data/webdataset": ["data.paths=shards"],
    "data/growing/webdataset": ["data.paths=shards"],
    "data/growing/jsonl": ["data.paths=captions/captions.jsonl"],
    "data/growing/parquet": ["data.paths=tables"],
    "data/preferences": ["data.paths=preferences/preferences.jsonl"],
    "data/preferences_parquet": ["data.paths=preferences/answers.parquet"],
    "data/prompts/file": ["data.paths=prompts/prompts.txt"],
    "data/prompts/image_questions": ["data.paths=prompts/questions.jsonl"],
    "data/worlds/prefer": ["data.paths=preferences/preferences.jsonl"],
    "data/text": ["data.paths=texts"],
    "data/coco": ["data.annotations=annotated/captions.json"],
    "data/vqa": ["data.questions=annotated/questions.json", "data.annotations=annotated/annotations.json"],
    "data/coco_boxes": ["data.annotations=annotated/instances.json"],
    "data/refcoco": ["data.refs=annotated/refs.jsonl"],
    "data/grounded_llava": ["data.paths=grounded/boxes.jsonl"],
    "data/edits": ["data.paths=edited"],
    "data/documents": ["data.paths=annotated/documents.jsonl"],
    "data/documents_drawn": ["data.paths=annotated/documents.jsonl"],
    "data/interleaved": ["data.paths=annotated/drawn.jsonl"],
    "data/mixed": ["data.captions=captions/captions.jsonl", "data.conversations=llava/llava.json", "data.texts=texts"],
    "data/mixed_curriculum": [
        *("data.captions=captions/captions.jsonl", "data.conversations=llava/llava.json", "data.texts=texts"),
        "data.classes=classes",
    ],
    "data/mixed_vision": ["data.captions=captions/captions.jsonl"],
}
"""What a data configuration of the user's own files cannot know; `tests/users_files.py` makes them."""
NOT_DRAWN = ("data/llava", "data/text", "data/vqa", "data/documents", "data/worlds/lesson", "data/worlds/talk")
NOT_DRAWN += ("data/pairs", "data/worlds/pairs", "data/worlds/captions", "data/several/compare", "data/several/few_shot")
NOT_DRAWN += ("data/coco_boxes", "data/refcoco", "data/grounded_llava", "data/worlds/locate", "data/worlds/locate_framed")
NOT_DRAWN += ("data/pages", "data/worlds/clips")
NOT_DRAWN += ("data/prompts/shapes", "data/prompts/digits", "data/prompts/questions", "data/prompts/file")
NOT_DRAWN += ("data/prompts/image_questions", "data/prompts/captions")
NOT_DRAWN += ("data/preferences", "data/preferences_parquet", "data/worlds/prefer")
"""Data of which nothing is encoded."""
DATA_OF = {"llava/align": "data/llava", "llava/finetune": "data/llava", "draw_finetune": "data/image_folder"}
DATA_OF |= {"few_pictures/model": "data/image_folder", "few_pictures/tokenizer": "images/image_folder"}
DATA_OF |= {"several/flamingo": "data/documents"}
DATA_OF |= {"align/clip_b16": "data/pairs", "align/siglip_b16": "data/pairs"}
DATA_OF |= {"pages/internvl": "data/llava"}
DATA_OF |= {"blip2/paper_align": "data/pairs", "blip2/paper_generate": "data/llava"}
DATA_OF |= {"locate/refcoco": "data/refcoco"}
DATA_OF |= {"clips/llava_video": "data/llava"}
DATA_OF |= {f"prefer/{name}": "data/worlds/prefer" for name in ("drawings", "captions", "both", "judges")}
DATA_OF |= {f"prefer/{name}": "data/preferences" for name in ("janus_ospo", "janus_suder")}
DATA_OF |= {f"grpo/{name}": "data/prompts/file" for name in ("janus_unirl", "janus_t2i_r1")}
DATA_OF |= {"interleaved/janus_pro_1b": "data/interleaved"}
DATA_OF |= {"edit/janus_pro_1b": "data/edits"}
DATA_OF |= {"janus/pretrain": "data/mixed_curriculum"}
DATA_OF |= {"flow/janus_flow_1b": "data/flow"}
"""Experiments on the user's own files."""


@cache
def groups_of(root: str) -> list[str]:
    """The groups that a root chooses from."""
    defaults = yaml.safe_load((CONF / f"{root}.yaml").read_text(encoding="utf-8"))["defaults"]
    return [group for entry in defaults if isinstance(entry, dict) for group in entry]


def ways() -> dict[str, tuple[str, list[str]]]:
    """Every way to choose: each root as it is, with each option of its groups, and each experiment with the verb it names."""
    found: dict[str, tuple[str, list[str]]] = {root: (root, []) for root in ROOTS}
    for option in OPTIONS:
        group, name = option.split("/", 1)
        if group == "experiment":
            said = re.search(r"^# For `unimm ([\w-]+)`", (CONF / f"{option}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
            assert said, f"{option} does not say which verb it is for"
            own = FILES[DATA_OF[name]] if name in DATA_OF else []
            found[option] = (said.group(1).replace("-", "_"), [f"+experiment={name}", *own])
        else:
            # A Janus looks at 576 positions an image: the default rows are for smaller models.
            more = ["trainer=gpu"] if group == "model" and name.startswith("janus") else []
            more += ["projector=qformer"] if option == "objective/qformer" else []
            more += ["stage=flow"] if option == "model/janus_flow_1b" else []
            more += FILES.get(option, [])
            found |= {f"{root} {option}": (root, [f"{group}={name}", *more]) for root in ROOTS if group in groups_of(root)}
    return found


BACKENDS = ways()


@cache
def compose(way: str, *more: str) -> DictConfig:
    """Composed once; do not change it.

    Data are those that `train` composes, put below another root: that this is what Hydra composes for that root is tested.
    """
    root, words = BACKENDS[way]
    option = way.partition(" ")[2]
    if root == "train" or more or not option.startswith("data/"):
        return compose_config(root, [*GIVEN[root], *words, *more])
    return with_data(compose(root), compose(f"train {option}").data)


def with_data(config: DictConfig, data: DictConfig) -> DictConfig:
    """A configuration that learns from other data."""
    other = OmegaConf.masked_copy(config, [key for key in config if key != "data"])
    with open_dict(other):
        other.data = data
    return other


def plain(config: DictConfig) -> dict[str, Any]:
    """As it is read, with every value that it takes from elsewhere."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def of_root(root: str) -> list[str]:
    return [way for way, (own, _) in BACKENDS.items() if own == root]


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything happens in a folder with a user's own files."""
    folder = make_all(tmp_path_factory.mktemp("files"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def text_tokenizer() -> TextTokenizer:
    """As `unimm train` makes it, from fewer records."""
    config = compose_config("train", GIVEN["train"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "RECORDS_FOR_TEXT", 300)
        return build_text_tokenizer(config, [bare_dataset(source.dataset) for source in config.data.sources.values()])


def bare_dataset(node: DictConfig) -> Any:
    """A data set; one with stored codes without them, which only `unimm encode` makes."""
    return build(without_codes(node))


def meta_image_tokenizer(config: ImageTokenizerConfig) -> ImageTokenizer:
    with torch.device("meta"):
        return ImageTokenizer(config)


def test_every_option_belongs_to_a_root() -> None:
    words = [word for _, chosen in BACKENDS.values() for word in chosen if "." not in word.split("=")[0]]
    used = {word.removeprefix("+").replace("=", "/") for word in words}
    assert set(OPTIONS) == used


def test_recipes_lie_in_folders_of_their_own() -> None:
    """Beside what a user may want there is nothing else; and a node of a built-in world is written once."""
    data = {
        "emoji",
        "image_folder",
        "jsonl",
        "llava",
        "mixed",
        "mixed_curriculum",
        "mixed_vision",
        "parquet",
        "text",
        "webdataset",
        "worlds",
    }
    data |= {"coco_boxes", "refcoco", "grounded_llava"}
    data |= {"coco", "csv", "vqa", "documents", "pairs"}
    data |= {"pages", "edits"}
    data |= {"interleaved", "documents_drawn"}
    data |= {"preferences", "preferences_parquet", "flow"}
    data |= {"figures", "figures_with_replay", "image_folder_with_replay"}
    assert {path.stem for path in (CONF / "data").glob("*.yaml")} == data
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {"draw_finetune", "finetune_with_replay"}
    texts = [path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")]
    for world in (
        *("ShapesWorld", "DigitsWorld", "EmojiWorld", "FiguresWorld", "PagesWorld"),
        *("ComparisonsWorld", "FewShotWorld", "InterleavedWorld", "EditsWorld"),
    ):
        assert sum(text.count(f"_target_: unimm.data.{world}") for text in texts) == 1


def test_what_a_recipe_learns_from_stays_in_its_order() -> None:
    """Sources are drawn by their number: put together from nodes, they must not change places."""
    weights = {
        "worlds": [0.38, 0.37, 0.13, 0.1, 0.02],
        "figures_with_replay": [0.85, 0.15, 0.28, 0.24, 0.06, 0.14, 0.12, 0.08, 0.08],
        "worlds/coded": [0.38, 0.37, 0.13, 0.1, 0.02],
        "worlds/corrupted": [0.17, 0.26, 0.03, 0.03, 0.02, 0.02, 0.04, 0.06, 0.08, 0.06, 0.14, 0.12, 0.12],
    }
    for name, expected in weights.items():
        sources = compose_config("train", [*GIVEN["train"], f"data={name}"]).data.sources
        assert [source.weight for source in sources.values()] == expected
    assert [*sources][:4] == ["shapes_talk", "shapes_draw", "digits_talk", "digits_draw"]
    node = OmegaConf.to_container(sources.arrange.dataset, resolve=True)
    shapes = {"_target_": "unimm.data.ShapesWorld", "split": "train", "num_records": 30000, "seed": 0, "lesson": "arrange"}
    coded = {"_target_": "unimm.data.CodedDataset", "folder": "x/arrange", "dataset": shapes}
    corrupted = {**coded, "folder": "x/arrange_recoloured", "dataset": {**shapes, "recoloured": True}}
    assert node == {**coded, "corrupted": corrupted}


@pytest.mark.parametrize("way", BACKENDS)
def test_it_composes_without_a_hole(way: str) -> None:
    assert {"seed", "out"} <= plain(compose(way)).keys()


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("data/")])
def test_an_option_of_data_sets_data_alone(option: str) -> None:
    """So that it may be composed once for all roots."""
    own, default = (OmegaConf.to_container(compose(way)) for way in (f"train {option}", "train"))
    assert isinstance(own, dict) and isinstance(default, dict)
    assert {**own, "data": None} == {**default, "data": None}


@pytest.mark.parametrize("option", ["data/worlds", "data/worlds/corrupted", "data/jsonl", "data/mixed_vision"])
@pytest.mark.parametrize("root", [root for root in ROOTS if root != "train" and "data" in groups_of(root)])
def test_data_are_the_same_below_every_root(root: str, option: str) -> None:
    """As the shell composes them, also where they are put together from nodes, or ask for codes and seeds of the root."""
    words = BACKENDS[f"{root} {option}"][1]
    composed, put = plain(compose_config(root, [*GIVEN[root], *words])), plain(compose(f"{root} {option}"))
    assert composed == put and list(composed["data"]) == list(put["data"])


Longest = Callable[[str, Template, int, tuple[int, ...]], int]


@pytest.fixture(scope="module")
def longest(text_tokenizer: TextTokenizer) -> Longest:
    """The longest of what the views of some sources, as YAML, give of their first records; the same sources are read once."""
    known: dict[tuple[object, ...], int] = {}

    def measure(sources: str, template: Template, num_codes: int, latents: tuple[int, ...]) -> int:
        sizes = (template.image_size, template.num_positions, template.latent_patch, num_codes, latents)
        key = (sources, repr(template.prompt_format), *sizes)
        if key not in known:
            codes = np.zeros(num_codes, dtype=np.int64)
            lengths = [0]
            for source in OmegaConf.create(sources).values():
                dataset, view = bare_dataset(source.dataset), build(source.view)
                for index in range(min(30, len(dataset))):
                    record = dataset[index]
                    if is_coded(source.dataset):
                        record = record.with_codes(*[codes] * max(record.num_images, 1)).with_corrupted_codes(codes)
                    if is_coded(source.dataset, latents=True):
                        record = record.with_codes(np.zeros(latents, np.float32), name=LATENTS)
                    lengths.append(view(record, template, np.random.default_rng(index)).length)
            known[key] = max(lengths)
        return known[key]

    return measure


@pytest.mark.parametrize("way", of_root("train"))
def test_a_training_builds(way: str, text_tokenizer: TextTokenizer, longest: Longest) -> None:
    """The model on no device, who learns of it, how, from what; and a row holds the longest of what the views give."""
    config = compose(way)
    image_tokenizer = meta_image_tokenizer(build(compose("train_tokenizer").tokenizer))
    with torch.device("meta"):
        model = build_model(config, text_tokenizer, image_tokenizer)
        objective: Objective = build(config.objective, model=model)
    trainer: TrainerConfig = build(config.trainer)
    assert trainer.ema_decay is None and trainer.validate_every == 0
    assert build(config.validation) == ValidationConfig(list(VALIDATION_TASKS), precision="auto")
    assert build(config.tracking) == TrackingConfig([])
    if way not in (
        "train stage/vision",
        "train stage/contrastive",
        "train stage/qformer",
        "train stage/flow",
    ):  # alone they are with the other objective, or another model
        freeze(objective.parts(), trainer.stage)
        stage_table(objective.parts(), trainer.stage, sum(p.numel() for p in objective.parameters()))
    vision = model.config.vision
    takes_videos = config.prompt_format is not None and "video" in config.prompt_format
    prompts = PromptFormat(box_form="short", box_bins=64, video=VideoFormat(), edits="codes_last")
    prompts = build_prompt_format(config.prompt_format, prompts) if takes_videos else prompts
    flow = model.config.ports.get("latents", LatentsConfig(latent_size=8))
    patch = {"latent_patch": flow.patch_size}
    template = Template(text_tokenizer, prompts, vision.image_size, model.num_image_positions, **patch)
    sources = OmegaConf.to_yaml(config.data.sources, resolve=True)
    held = longest(sources, template, image_tokenizer.num_codes, flow.shape)
    assert held <= min(trainer.num_positions, model.config.max_positions)


def test_adapters_are_what_their_file_says() -> None:
    assert compose("train").lora is None
    config = compose("train lora/default", "lora.rank=8", "lora.targets=[trunk.q_proj,vision]")
    assert build(config.lora) == LoraConfig(rank=8, targets=["trunk.q_proj", "vision"])
    assert asdict(build(compose("train lora/default").lora)) == {**asdict(LoraConfig()), "targets": ["trunk"]}


@pytest.mark.parametrize(("name", "theirs"), [("janus_1.3b", PRO_1B), ("janus_pro_1b", PRO_1B), ("janus_pro_7b", pro_7b())])
def test_a_janus_has_the_sizes_that_deepseek_writes(name: str, theirs: dict[str, Any]) -> None:
    expected, tokenizer = from_janus_config(as_janus_config(theirs))
    words = ["tokenizer=vq16", "tokenizer.image_size=384"]
    assert replace(build(compose_config("train_tokenizer", words).tokenizer), quantizer=tokenizer.quantizer) == tokenizer
    ours = fill_sizes(build(compose_config("train", [*GIVEN["train"], f"model={name}"]).model), tokenizer, 1)
    assert (ours.vision, ours.codes, ours.projector) == (expected.vision, expected.codes, expected.projector)
    for key, value in ours.trunk.items():
        assert getattr(expected.trunk_config(), key) == value, key


@pytest.mark.parametrize("way", of_root("train_tokenizer"))
def test_a_tokenizer_training_builds(way: str) -> None:
    config = compose(way)
    assert meta_image_tokenizer(build(config.tokenizer)).num_codes > 0
    assert isinstance(build(config.tokenizer_trainer), TokenizerTrainerConfig)
    assert build(config.tracking) == TrackingConfig([])
    for node in [*(source.dataset for source in config.images.sources.values()), config.images.validation]:
        assert build(node)[0].image is not None


@pytest.mark.parametrize("way", of_root("encode"))
def test_what_is_encoded_builds(way: str) -> None:
    config = compose(way)
    for source in config.data.sources.values():
        assert len(bare_dataset(source.dataset)) > 0
    if way.removeprefix("encode ") not in NOT_DRAWN:
        assert _coded_datasets(config, latents=way == "encode data/flow")


@pytest.mark.parametrize("way", of_root("encode"))
def test_what_is_stored_as_codes_does_not_move_with_the_seed(way: str) -> None:
    """Else a run of another seed would read codes of other images than its own."""
    of_seeds = []
    for seed in (0, 1):
        config = with_data(compose(way), compose(way).data)
        config.seed = seed
        of_seeds.append(config.data.sources.values())
    for one, other in zip(*of_seeds, strict=True):
        assert not is_coded(one.dataset) or one.dataset == other.dataset


@pytest.mark.parametrize("option", sorted({"data/image_folder", "data/jsonl", "data/parquet", "data/webdataset"}))
@pytest.mark.parametrize("source", ["talk", "draw"])
def test_half_of_a_data_set_may_be_left_out(option: str, source: str) -> None:
    """And who does not draw, needs no codes."""
    config = compose(f"train {option}", f"~data.sources.{source}")
    if source == "talk":
        assert list(_coded_datasets(config)) == [option.removeprefix("data/")]
    else:
        assert {name: len(dataset) for name, dataset in builders.build_datasets(config, "").items()} == {"talk": 4}


@pytest.mark.parametrize("option", FILES)
def test_files_that_are_not_named_are_asked_for(option: str, tmp_path: Path) -> None:
    """By the key that the recipe names."""
    verb = "train-tokenizer" if option.startswith("images/") else "train" if option in NOT_DRAWN else "encode"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("unimm.cli.builders.open_image_tokenizer", lambda _: None)
        patch.setattr("unimm.cli.learner.fingerprint", lambda _: "")
        result = CliRunner().invoke(app, [verb, *GIVEN[verb.replace("-", "_")], option.replace("/", "=", 1)])
    key = FILES[option][0].split("=")[0]
    assert result.stderr == f"unimm: The key '{key}' has no value yet: add {key}=...\n" and result.exit_code == 2


# -- mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("word", ["zebra=1", "hydra/zebra=1", "+experiment=zebra", "=1", "seed=[1"])
def test_a_typo_ends_in_one_sentence(root: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    result = CliRunner().invoke(app, [*command_name(root).split(), *GIVEN[root], word])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("root", "word", "node", "told"),
    [
        ("train", "+trainer.zebra=1", "trainer", "trainer.zebra"),
        ("train", "+trainer.optimizer.zebra=1", "trainer", "trainer.optimizer.zebra"),
        ("train", "+model.vision.zebra=1", "model", "model.vision.zebra"),
        ("train", "+stage.zebra=1", "stage", "stage.zebra"),
        ("train", "trainer.budget.max_steps=0", "trainer", "max_steps is a whole number of at least 1, not 0"),
        ("train", "trainer.ema_decay=2", "trainer", "ema_decay is a number above 0 and below 1"),
        ("train", "trainer.validate_every=-1", "trainer", "validate_every is a whole number"),
        ("train", "validation.monitor=zebra", "validation", "validation.monitor is mean, loss or one of shapes_answers"),
        ("train", "trackers=[zebra]", "tracking", "There is no tracker 'zebra'"),
        ("train", "model.vision.patch_size=7", "model", "7 px"),
        ("train_tokenizer", "+tokenizer.zebra=1", "tokenizer", "tokenizer.zebra"),
        ("train_tokenizer", "+tokenizer_trainer.zebra=1", "tokenizer_trainer", "tokenizer_trainer.zebra"),
    ],
)
def test_what_an_object_does_not_know_ends_in_one_sentence(
    root: str, word: str, node: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose_config(root, [*GIVEN[root], word])
    with pytest.raises(SystemExit) as stopped, plain_errors():
        build(config[node])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("unimm: ") and error.count("\n") == 1
