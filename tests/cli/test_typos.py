"""A mistyped key, option, group or prefix is answered with what was probably meant, wherever it lies."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.cli.choices import EXPERIMENT, RECIPES, Choices, command_name
from unimm.cli.hydra_errors import CommandLine, check_overrides, command_of, explain_hydra
from unimm.cli.overrides import split_arguments
from unimm.cli.suggestions import SYNONYMS, did_you_mean, nearest_keys, nearest_options

pytestmark = pytest.mark.usefixtures("configurations_read_once")

CHOICES = Choices.of([])
ROOTS = ("train", "train_tokenizer", "encode", "encode_features", "data_inspect", "data_convert", "reproduce")

FORMS = {
    "a level left out": ("train trainer.lr=1", "did you mean 'trainer.optimizer.lr'?"),
    "a prefix left out": ("plan optimizer.lr=1", "did you mean 'trainer.optimizer.lr'?"),
    "a prefix misspelled": ("train train.optimizer.lr=1", "did you mean 'trainer.optimizer.lr'?"),
    "another level": ("train-tokenizer tokenizer_trainer.max_step=3", "did you mean 'tokenizer_trainer.budget.max_steps'?"),
    "a name of the field": ("train trainer.batch_size=8", "did you mean 'trainer.num_rows'?"),
    "a key misspelled": ("encode-features init_form=x", "did you mean 'init_from'?"),
    "a key of another option": (
        "train data.paths=x",
        "no key 'data.paths' with data=worlds, only with data=csv, documents, documents_drawn, edits, flow, grounded_llava",
    ),
    "a misspelled key of another option": (
        "encode data.path=x",
        "did you mean data.paths (of data=csv, documents, documents_drawn, edits,",
    ),
    "names that a group of keys has not": (
        "train trainer.weights={text:2}",
        "'trainer.weights' has other names: add one by +trainer.weights.NAME=VALUE, and take one out by ~trainer.weights.NAME.",
    ),
    "a key of an option that is off": ("train lora.rank=8", "no key 'lora.rank' with lora=none, only with lora=default."),
    "an option misspelled": ("encode data=jsnl", "did you mean 'data=jsonl'?"),
    "an option of another group": ("train trainer=align", "did you mean 'stage=align'?"),
    "an option's old name": ("encode data=worlds_mastery", "did you mean 'data=worlds/mastery'?"),
    "a group misspelled": ("train dataset=jsonl", "did you mean 'data=jsonl'?"),
    "a group of another command": (
        "train-tokenizer data=jsonl",
        "`unimm train-tokenizer` has no group 'data', only tokenizer, ",
    ),
    "an experiment's old name": ("train +experiment=janus_pro_align", "did you mean '+experiment=janus/pro_align'?"),
    "an experiment without its folder": (
        "train-tokenizer +experiment=tokenizer",
        "did you mean '+experiment=demo/tokenizer', ",
    ),
    "a folder of experiments": (
        "train +experiment=llava",
        "folder of +experiment=llava/align, +experiment=llava/finetune, +experiment=llava/toy_align and "
        "+experiment=llava/toy_finetune.",
    ),
    "an experiment without a plus": ("train experiment=janus_align", "plus; did you mean '+experiment=janus/align'?"),
    "an experiment of another command": (
        "encode +experiment=demo/vision",
        "'demo/vision' is for `unimm train`: `unimm encode` has no",
    ),
    "a source to leave out": ("train ~data.sources.shape_text", "did you mean '~data.sources.shapes_text'?"),
    "a plus too many": ("plan +data=jsonl", "to be replaced without a plus: data=jsonl."),
}
"""Arguments with a mistake, which Hydra finds, and the answer."""

ADDED = {
    "train +expriment=janus/align": "did you mean '+experiment=janus/align'?",
    "train +trainr.compile=true": "did you mean 'trainer.compile'?",
    "encode +data.folder=x": "no key 'data.folder' with data=worlds, only with data=image_folder.",
    "train +data.sources.shapes_talk.weigth=1": "did you mean 'data.sources.shapes_talk.weight'?",
    "train trainer.stage=align": "did you mean 'stage=align'?",
    "train trainer.sharding=fsdp": "is a group of keys: set trainer.sharding.strategy, trainer.sharding.",
    "train validation=loss": "is a group of keys: set validation.tasks,",
}
"""Arguments that Hydra takes, and the answer."""

MEANT = (
    "data=jsonl data.paths=x +data.sources.mine.dataset._target_=pkg.Mine +data.sources.mine.weight=1 +trainer.weights.text=2",
    "+experiment=janus/align ratio={understanding:1} +ratio.drawing=1 +model.trunk.rope_theta=1 ++seed=1 ~data.sources.draw",
    "stage=align,pretrain -m trainer.budget.max_steps=1,2 +hydra.sweep.dir=x data.sources.shapes_talk.dataset=${x}",
    "+photos=/data data=image_folder data.folder=${photos}/train trainer.sharding={strategy:fsdp} ratio=null",
)
"""Arguments without a mistake."""


def call(words: str) -> str:
    """What a command answers to arguments with a mistake: one sentence."""
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_what_was_meant_is_named(form: str) -> None:
    words, answer = FORMS[form]
    assert answer in call(words)


def line_of(words: str) -> CommandLine:
    command, *arguments = shlex.split(words)
    return CommandLine(command.replace("-", "_"), split_arguments(arguments))


@pytest.mark.parametrize("words", ADDED)
def test_what_nothing_would_read_is_refused(words: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_overrides(line_of(words))
    assert ADDED[words] in str(refused.value)


@pytest.mark.parametrize("words", MEANT)
def test_what_is_right_is_left_alone(words: str) -> None:
    check_overrides(line_of(f"train {words}"))


def test_a_users_own_folder_counts(place: Path) -> None:
    """Its options are named, its keys are known, and what its files read may be added."""
    (place / "mine/data/deep").mkdir(parents=True)
    (place / "mine/data/deep/mymix.yaml").write_text("paths: ${photos}/x\nsources: {}\n")
    assert "did you mean 'data=deep/mymix'?" in call("encode data=mymix --config-dir mine")
    check_overrides(line_of("encode --config-dir=mine data=deep/mymix +photos=/data"))
    with pytest.raises(ValueError, match="no key 'photo' in the configuration"):
        check_overrides(line_of("encode --config-dir=mine data=deep/mymix +photo=/data"))


def test_keys_of_what_is_built_are_compared_too() -> None:
    error = type("InstantiationException", (Exception,), {})("Error in call to target\nfull_key: trainer")
    error.__cause__ = TypeError("TrainerConfig.__init__() got an unexpected keyword argument 'lr'")
    answer = explain_hydra(error, line_of("train +trainer.lr=1"))
    assert answer == "There is no key 'trainer.lr': TrainerConfig does not know it; did you mean 'trainer.optimizer.lr'?"


def test_the_nearest_is_the_nearest() -> None:
    keys = ["a.lr", "a.b.lr", "a.b.rate", "c.max_steps", "sources.one.weight", "sources.two.weight"]
    assert nearest_keys("lr", keys) == ["a.lr"]
    assert nearest_keys("b.lr", keys) == ["a.b.lr"]
    assert nearest_keys("c.steps", keys) == ["c.max_steps"]
    assert nearest_keys("weight", keys) == ["sources.one.weight", "sources.two.weight"]
    assert nearest_keys("zebra", keys) == [] and did_you_mean([]) == "."
    assert nearest_options("Pro-Align", ["janus/pro_align", "janus/align"]) == ["janus/pro_align"]
    assert nearest_options("aling", ["janus/pro_align", "janus/align"]) == ["janus/align"]
    assert nearest_options("zebra", ["align"]) == []


def test_names_of_other_code_bases_lead_to_keys_that_are_there() -> None:
    known = {key.rsplit(".", 1)[-1] for root in ROOTS for key in CommandLine(root).known_keys()}
    options = [CHOICES.keys_of(group, name) for group in ("trainer", "tokenizer_trainer") for name in CHOICES.files[group]]
    known |= {key.rsplit(".", 1)[-1] for keys in options for key in keys}
    assert set(SYNONYMS.values()) <= known
    # The first of `encode` and of images, where trainings have num_rows; the second a group of keys, where people mean a file.
    assert set(SYNONYMS) & known == {"batch_size", "checkpoint"}


@pytest.mark.parametrize("root", ROOTS)
def test_help_lists_what_a_user_may_want(root: str) -> None:
    """With a line each; the recipes' own by the names of their folders."""
    result = CliRunner().invoke(app, [*command_name(root).split(), "--help", "seed=12345"])
    assert result.exit_code == 0
    listed = result.output.partition("Keys, as these arguments set them:")
    assert listed[0].startswith(f"Usage: unimm {command_name(root)} ")
    assert "seed: 12345" in listed[2] and str(CHOICES.folders[0]) in listed[0]
    lines = listed[0].splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and "=" not in line.split()[0]]
    assert all(len(line.split()) > 1 for line in lines if line.startswith("  "))
    for group in CHOICES.groups_of(root):
        for name in CHOICES.files[group]:
            assert (name in names) == (name.partition("/")[0] not in RECIPES.get(group, ()) or "/" not in name), name
    recipes = {line.split()[0] for line in lines if line.startswith("  ") and "..." in line.split()[0]}
    assert recipes == {
        "train": {
            "data=worlds/...",
            *(f"+experiment={name}/..." for name in ("demo", "encoders", "projectors", "quickstart", "scaling")),
        },
        "train_tokenizer": {"+experiment=demo/...", "+experiment=quickstart/..."},
        "reproduce": set(),
    }.get(root, {"data=worlds/..."})


def test_help_of_a_command_with_the_keys_of_another_names_itself() -> None:
    result = CliRunner().invoke(app, ["plan", "--help"])
    assert result.exit_code == 0 and result.output.startswith("Usage: unimm plan [GROUP=OPTION | KEY=VALUE]...")
    assert "trainer=default" in result.output and "+experiment=quickstart/..." in result.output


def test_every_experiment_says_which_command_it_is_for() -> None:
    commands = {name: command_of(name, CHOICES) for name in CHOICES.files[EXPERIMENT]}
    assert set(commands.values()) == {"train", "train-tokenizer"}, commands
