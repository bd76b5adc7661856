"""Overrides as people type them: a path comes out as it went in, and what Hydra's grammar means keeps its meaning."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from typer.testing import CliRunner

from unimm.cli import compose
from unimm.cli.app import app, expand_home
from unimm.cli.choices import conf_folder
from unimm.cli.compose import compose_config, given_sizes, run_with_hydra
from unimm.cli.overrides import FLAGS, FUNCTIONS, ONE_PATH, PATHS, VALUED_OPTIONS, as_typed, quote, split_arguments

pytestmark = pytest.mark.usefixtures("configurations_read_once")

parser = OverridesParser.create()


def value(word: str, is_multirun: bool = False) -> Any:
    """What Hydra takes a word for."""
    (spelled,) = as_typed([word], is_multirun)
    assert as_typed([spelled], is_multirun) == [spelled], "a word that is spelled for Hydra is as it is typed"
    return parser.parse_override(spelled).value()


SIGNS = st.sampled_from([*"ab1/. -_=,()[]{}:~+@#%&!?*$;'\"<>|^`", "照片", "ü", "é", "😀", "ñ/", "(1)", "a, b", "null ", "1e5"])
NAMES = st.lists(SIGNS, min_size=1, max_size=8).map("".join).filter(lambda name: "${" not in name)


def is_hydras(name: str) -> bool:
    """Whether a name is what Hydra's documentation calls something else than a string: then it is to be quoted."""
    return (
        name.startswith(("[", "{", "'", '"', "~"))
        or name.strip().lower() in ("null", "true", "false")
        or any(f"{function}(" in name for function in FUNCTIONS)
    )


@settings(deadline=None)
@given(NAMES.filter(lambda name: not is_hydras(name)))
def test_a_path_comes_out_as_typed(name: str) -> None:
    for key in ("out", "data.folder", "images.validation_folder", "+init_from", "++data.dataset.folder", "trainer.plan"):
        assert value(f"{key}={name}") == name
    absolute = f"/data/{name}"
    assert value(f"out={absolute}") == absolute


@settings(deadline=None)
@given(NAMES)
def test_a_quoted_value_is_its_text(name: str) -> None:
    for text in (name, f"{name}\\", f"\\{name}", f"{name}\\'"):
        assert value(f"anything={quote(text)}") == text


@settings(deadline=None)
@given(st.lists(NAMES.map(lambda name: "".join(sign for sign in name if sign not in "()[]{}'\",")), max_size=3))
def test_a_list_of_paths_comes_out_as_typed(names: list[str]) -> None:
    names = [name.strip() for name in names if name.strip() and not is_hydras(name.strip())]
    assert value(f"data.paths=[{', '.join(names)}]") == names


@settings(deadline=None)
@given(NAMES)
def test_what_hydra_reads_of_other_keys_is_left_to_it(name: str) -> None:
    """A value of a key that is no path is never changed where Hydra can read it."""
    word = f"data.prompt={name}"
    try:
        expected = parser.parse_override(word)
    except HydraException:  # its grammar, its functions: what it cannot read is another test's
        return
    if not name.startswith("~"):
        assert as_typed([word]) == [word]
        assert expected.input_line == word


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("out=2024", "2024"),
        ("data.paths=[2024, b c]", ["2024", "b c"]),
        ("init_from=null", None),
        ("trainer.compile=true", True),
        ("trainer.optimizer.lr=1e-3", 1e-3),
        ("trainer.optimizer.betas=[0.9, 0.95]", [0.9, 0.95]),
        ("trainer.weights={codes: 1, text: 0.5}", {"codes": 1, "text": 0.5}),
        ("notes={first: ü, second: [x (1), b=c]}", {"first": "ü", "second": ["x (1)", "b=c"]}),
        ("out=runs/${seed}", "runs/${seed}"),
        ("out=照片/${seed}", "照片/${seed}"),
        ("out='x y'", "x y"),
        (r"out=x\ \(1\)", "x (1)"),
        (r"out=C:\new", r"C:\new"),
        ("prompt=it's 5 o'clock", "it's 5 o'clock"),
        ("out= x ", " x "),
        ("data.folder=", ""),
    ],
)
def test_values_keep_their_meaning(word: str, expected: object) -> None:
    assert value(word) == expected


def test_deletions_additions_and_groups_are_left_alone() -> None:
    words = [
        "~data.sources.draw",
        "~suite=quick",
        "+experiment=quickstart/unified",
        "++x.y=1",
        "data@other=text",
        "lora.targets=[trunk,vision]",
    ]
    assert as_typed(words) == words


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ü")
    assert value("data.folder=~/photos") == "/home/ü/photos"
    assert value("data.paths=[~/a, b/~c]") == ["/home/ü/a", "b/~c"]
    assert value("out=~") == "/home/ü"
    assert split_arguments(["--config-dir=~/conf", "-cd", "~/conf"]).options == [
        "--config-dir=/home/ü/conf",
        "-cd",
        "/home/ü/conf",
    ]


def test_commas_are_swept_over_with_multirun() -> None:
    def swept(word: str) -> list[str]:
        return list(parser.parse_override(as_typed([word], is_multirun=True)[0]).sweep_string_iterator())

    assert swept("data.folder=照片,x (1),2024") == ["'照片'", "'x (1)'", "'2024'"]
    assert swept("out=choice(ü, b)") == ["'ü'", "b"]
    assert swept("out=choice(a, b)") == ["a", "b"]
    assert value("seed=tag(x,choice(ü,b))", is_multirun=True).tags == {"x"}
    assert swept("seed=range(start=1,stop=3)") == ["1", "2"]
    assert swept("data.paths=[ü,b],[c]") == ["['ü',b]", "[c]"]
    assert value("out=a,b") == "a,b"  # without it a comma is part of a path


@pytest.mark.parametrize("word", ["lora.targets=[trunk", "x={a: 1", "ü=3", "out=[ü", "rate", "x=[ü,]"])
def test_what_is_wrong_is_left_for_hydra_to_tell(word: str) -> None:
    with pytest.raises(HydraException):
        parser.parse_override(as_typed([word])[0])


def test_options_are_told_from_overrides() -> None:
    words = split_arguments(
        ["a=1", "--config-dir", "mine", "shapes", "-cn", "own", "b=2", "~c", "--info", "all", "-m", "--resolve"]
    )
    assert words.options == ["--config-dir", "mine", "-cn", "own", "--info", "all", "-m", "--resolve"]
    assert words.overrides == ["a=1", "b=2", "~c"]
    assert words.names == ["shapes"]
    assert words.is_multirun and split_arguments(["--multi"]).is_multirun and not split_arguments(["-cm"]).is_multirun
    with pytest.raises(ValueError, match="Unknown option --lr: settings are written key=value"):
        split_arguments(["--lr", "3"])


def test_hydras_options_and_functions_are_all_known() -> None:
    valued, flags = [], []
    for action in get_args_parser()._actions:
        (flags if action.nargs == 0 else valued).extend(action.option_strings)
    assert set(valued) == set(VALUED_OPTIONS)
    assert set(flags) == set(FLAGS)
    assert set(FUNCTIONS) == set(create_functions().definitions)


def test_every_key_that_asks_for_a_path_is_known_as_one() -> None:
    """In these groups all that a user has to give are paths: a new one must be listed."""
    for group in ("data", "images"):
        for path in (conf_folder() / group).glob("*.yaml"):
            config = OmegaConf.load(path)
            for key in config:
                if OmegaConf.is_missing(config, key):
                    name = f"{group}.{key}"
                    assert ONE_PATH.fullmatch(name) or PATHS.fullmatch(name), name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration of the user's own below it, and words of a process that may be changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unimm"])
    monkeypatch.delenv("UNIMM_DEBUG", raising=False)
    for name in ("mine", "x (1)"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data/mymix.yaml").write_text("defaults: [image_folder]\nlanguage: zh\nfolder: mine\n")
    return tmp_path


@pytest.mark.parametrize(
    "option", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"], ["--config-dir", "x (1)"]]
)
def test_a_folder_of_own_configurations_is_found_anywhere_on_the_line(option: list[str], place: Path) -> None:
    for words in (["data=mymix", *option, "seed=3"], [*option, "data=mymix", "seed=3"]):
        found: list[DictConfig] = []
        run_with_hydra("encode", found.append, [*words, "image_tokenizer=照片", "out=x (1)/=b"])
        (config,) = found
        assert (config.data.language, config.seed) == ("zh", 3)
        assert (config.image_tokenizer, config.out) == ("照片", "x (1)/=b")
        assert config.data.sources.draw.dataset.folder == "x (1)/=b/image_folder"


def test_a_launcher_passes_words_by_the_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "data=mymix", "-cd", "mine", "out=~/照片", "codes=2024", "image_tokenizer=a=b"])
    found: list[DictConfig] = []
    run_with_hydra("train", found.append)
    assert [(one.out, one.codes, one.image_tokenizer) for one in found] == [(f"{os.environ['HOME']}/照片", "2024", "a=b")]


def test_runs_of_a_sweep_have_their_paths(place: Path) -> None:
    found: list[str] = []
    run_with_hydra(
        "train", lambda config: found.append(config.codes), ["-m", "codes=照片,x (1),2024", "image_tokenizer=x", "out=runs"]
    )
    assert found == ["照片", "x (1)", "2024"]


def test_an_option_of_other_verbs_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ü")
    words = ["--out=~/x y", "--out=a~", "out=~/x", "--notes=~", "-n=~/x", "--out=~/x/", "--model=~there is nobody/x"]
    assert [expand_home(word) for word in words] == [
        "--out=/home/ü/x y",
        *words[1:3],
        "--notes=/home/ü",
        "-n=~/x",
        "--out=/home/ü/x/",
        words[-1],
    ]


def test_composed_from_python_they_are_as_typed() -> None:
    config = compose_config("train", ["image_tokenizer=x", "codes=a,b", "out=runs/ü (2)"])
    assert (config.codes, config.out) == ("a,b", "runs/ü (2)")


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("encode", ["--config-dir", "mine", "data=mymix", "image_tokenizer=nowhere"], "nowhere"),
        ("encode", ["my-set", "2024", "--config-dir", "mine", "data=mymix", "image_tokenizer=x"], "2024, my-set"),
        ("encode", ["--config-dir", "nowhere", "data=mymix"], "nowhere"),
        ("train", ["--lr", "3"], "Unknown option --lr"),
        ("train", ["lora.targets=[trunk"], "'lora.targets=[trunk'"),
        ("train", ["größe=3"], "'größe=3'"),
        ("train", ["rate"], "'rate'"),
        ("plan", ["data=text", "data.paths=照片 (1),b", "image_tokenizer=x", "codes=x"], "data.paths"),
        (
            "train-tokenizer",
            ["images=image_folder", "images.folder=x (2)", "images.validation_folder=y", "device=cpu"],
            "x (2)",
        ),
        ("encode-features", ["data=image_folder", "data.folder=照片 2", "init_from=nowhere=x", "device=cpu"], "nowhere=x"),
    ],
)
def test_mistakes_end_in_one_sentence(verb: str, words: list[str], told: str, place: Path) -> None:
    result = CliRunner().invoke(app, [verb, *words])
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.startswith("unimm: ") and result.stderr.count("\n") == 1, result.stderr


def test_sizes_are_those_of_the_files_as_they_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of them once is read again after a change: else a file's own sizes would count as given beside it."""
    shutil.copytree(conf_folder(), tmp_path / "conf")
    monkeypatch.setattr(compose, "conf_folder", lambda: tmp_path / "conf")
    words = ["codes=x", "init_from=demo", "model=tiny"]
    for width in (48, 96):
        file = tmp_path / "conf/model/tiny.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        config["vision"]["width"] = width
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        composed = compose_config("train", words)
        assert composed.model.vision.width == width and given_sizes(composed) == ("model",)
    assert given_sizes(compose_config("train", [*words, "model.vision.width=32"])) == ("model", "model.vision.width")


def test_a_file_gives_a_size_also_where_the_option_has_the_same() -> None:
    """A length of 1,024 in an experiment was passed over where the model's own option, tiny, has 1,024, too."""
    length = "model.trunk.max_position_embeddings"
    assert compose_config("train", []).model.trunk.max_position_embeddings == 1024
    slips = compose_config("train", ["+experiment=pages/slips"])
    assert slips.model.trunk.max_position_embeddings == 1024 and length in given_sizes(slips)
    assert given_sizes(compose_config("train", ["init_from=demo"])) == ()


@pytest.mark.parametrize(
    ("word", "name", "weight"),
    [
        ("+rollouts.rewards.clip_score:models/clip=1.0", "clip_score:models/clip", 1.0),
        ("+rollouts.rewards.'vqa_score:a, b'=2", "vqa_score:a, b", 2),
        ("rollouts.rewards.my.package:Judge?threshold=0.5=0.25", "my.package:Judge?threshold=0.5", 0.25),
        ("rollouts.rewards.checker=0", "checker", 0),
    ],
)
def test_a_reward_is_weighed_by_its_name_whatever_that_holds(word: str, name: str, weight: float) -> None:
    (spelled,) = as_typed([word])
    assert as_typed([spelled]) == [spelled]
    composed = compose_config("train", ["+experiment=grpo/shapes", spelled])
    assert composed.rollouts.rewards[name] == weight and len(composed.rollouts.rewards) == 1 + (name != "checker")
