"""Errors in one sentence: those of Hydra that need no command line, those of the system, and what stays a bug."""

from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from unimm.cli.errors import explain, plain_errors


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    budget = "budget:\n  _target_: unimm.training.Budget\n  max_steps: 10\n"
    (tmp_path / "main.yaml").write_text(f"{budget}rate: 0.1\nneeded: ???\n")
    return tmp_path


def sentence(conf: Path, *words: str) -> str:
    """What a user is told for these words."""
    with pytest.raises(Exception) as caught, hydra.initialize_config_dir(str(conf), version_base="1.3"):
        instantiate(hydra.compose("main", list(words)), _convert_="all")
    told = explain(caught.value)
    assert told is not None
    assert "\n" not in told
    return told


def test_an_unknown_key_names_the_nearest_one(conf: Path) -> None:
    assert sentence(conf, "rat=1") == "There is no key 'rat' in the configuration; did you mean 'rate'?"
    assert sentence(conf, "budget.max_step=1").endswith("did you mean 'budget.max_steps'?")
    assert sentence(conf, "max_stepz=1").endswith("did you mean 'budget.max_steps'?")
    assert sentence(conf, "zebra=1") == "There is no key 'zebra' in the configuration."
    assert "'budget.zebra'" in sentence(conf, "needed=1", "+budget.zebra=1")


def test_a_bad_value_names_its_key_and_the_reason(conf: Path) -> None:
    told = "budget: max_steps is a whole number of at least 1, not -3."
    assert sentence(conf, "needed=1", "budget.max_steps=-3") == told
    assert sentence(conf, "needed=1", "budget.max_steps=soon") == told.replace("-3", "'soon'")
    assert sentence(conf) == "The key 'needed' has no value yet: add needed=..."


def test_words_that_are_no_overrides(conf: Path) -> None:
    assert "'rate'" in sentence(conf, "rate")
    assert "'rate=[1,'" in sentence(conf, "rate=[1,")


def test_bugs_keep_their_traceback() -> None:
    assert explain(RuntimeError("a bug")) is None
    assert explain(KeyError("a bug")) is None
    with pytest.raises(ZeroDivisionError), plain_errors():
        _ = 1 / 0


def test_messages_of_many_lines_become_one_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, plain_errors():
        raise ValueError("one\n  two " + "x" * 5_000)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("unimm: one two xxx")
    assert len(told) < 1_100


def test_errors_of_the_system_name_the_file() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("not/there").read_text()
    assert explain(caught.value) == "not/there: no such file or directory."
