"""A run that resumes with other settings than it had: what can be followed is followed and reported, the rest is refused.

Every checkpoint keeps, under `record`, the settings that its steps were made with and fingerprints of what the run began from
(the model of `init_from`, the two tokenizers), so that a moved folder is no other one, and a folder that was written anew is.
`out/config.yaml` says what is in use, and in its first lines from which step on it was something else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError
from rich.console import Console

from unimm.cli.compose import save_config
from unimm.training.checkpoint import CHECKPOINTS, peek
from unimm.training.loop import Loop
from unimm.training.trainable_parts import current_name

ONLY_AT_THE_START = ("init_parts", "fresh_parts", "text_vocabulary", "whitened_images", "spread_codes")
"""Settings that no step after the first one follows."""

RENAMED = {"Look": "VisionPretraining"}
"""Classes that older runs name otherwise."""

RENAMED_KEYS = {"stage.learns": "stage.lr_scales", "trainer.sharding.way": "trainer.sharding.strategy"}
"""Settings, and groups of them, that older runs name otherwise."""

RENAMED_IN_SOURCES = {"dataset.decoys": "dataset.corrupted", "view.decoys": "view.corrupted"}
"""The same for settings of any source of the data."""

MOST_SAID = 8
"""Changes that a line names; all stand in config.yaml."""

FOLDERS = {
    "init_from": "another model to start from",
    "image_tokenizer": "another image tokenizer, by which codes mean something else",
    "latents_tokenizer": "another image tokenizer of latents, by which these mean something else",
    "text_tokenizer": "another text tokenizer, by which ids mean something else",
}
"""What the fingerprints are of."""


@dataclass(frozen=True)
class Change:
    """A setting that differs from what the steps so far were made with; None: it was, or is, not there."""

    key: str
    before: Any
    now: Any

    @classmethod
    def of(cls, key: str, before: dict[str, Any], now: dict[str, Any]) -> "Change":
        """The two values of a key. `group._target_` is named as `group`, by its class."""
        values = before.get(key), now.get(key)
        if key.endswith("._target_"):
            names = (value and str(value).rsplit(".", 1)[-1] for value in values)
            key, values = key.removesuffix("._target_"), tuple(name and RENAMED.get(name, name) for name in names)
        return cls(key, *values)

    @property
    def is_one(self) -> bool:
        """Whether anything has changed: a class may have moved, and an empty group or list is as good as none."""
        return self.before != self.now and not all(value in ({}, [], None) for value in (self.before, self.now))

    def __str__(self) -> str:
        return f"{self.key}={_shown(self.now)} (was {_shown(self.before)})"


class Resuming:
    """What a run in the folder `out` of a configuration began with, if there is one.

    trainer_key: where the configuration has the trainer, to name its budget.
    starts: groups of settings that only a new run follows, such as the sizes of its model.

    Raises:
        ValueError: settings differ that only a new run could follow.
    """

    def __init__(self, config: DictConfig, trainer_key: str, starts: tuple[str, ...]) -> None:
        self.config, self.folder, self.trainer_key = config, Path(config.out), trainer_key
        state = peek(self.folder / CHECKPOINTS) or {}
        self.record: dict[str, Any] = state.get("record") or {}
        self.settings = with_new_names(dict(flat_settings(config)))
        self.fingerprints: dict[str, str] = {}
        self.notes: list[str] = []
        before = with_new_names(self.record.get("settings", self.settings))
        keys = sorted(key for key in before.keys() | self.settings.keys() if key != "out")
        changes = [Change.of(key, before, self.settings) for key in keys if before.get(key) != self.settings.get(key)]
        self.changes = [change for change in changes if change.is_one]
        for change in self.changes:
            if change.key.startswith(tuple(f"{one}." for one in starts)) or change.key in (*starts, *ONLY_AT_THE_START):
                raise self._refusal(f"{change.key}={_shown(change.before)}, not {_shown(change.now)}")

    def check(self, fingerprints: dict[str, str]) -> None:
        """Compare what the run began from with what it would resume from; called before anything is built from it.

        fingerprints: by the keys of `FOLDERS`.

        Raises:
            ValueError: it is another one, and matters.
        """
        self.fingerprints = fingerprints
        for key, what in FOLDERS.items():
            before, now = self.record.get("fingerprints", {}).get(key), fingerprints.get(key)
            if before is None or before == now:
                continue
            began, given = (_shown(settings.get(key)) for settings in (self.record["settings"], self.settings))
            if key != "init_from" or began != given or self.config.get("lora") is not None:
                path = f"{key}={began}, not {given}" if began != given else f"{key}={began} has changed since"
                raise self._refusal(f"{what} ({path})")
            self.notes.append(f"{key}={began} has changed since {self.folder} began: the run goes on from weights of its own.")

    def follow(self, trainer: Loop) -> None:
        """Say from which step a run resumes and with which changes; checkpoints and config.yaml record them from now on.

        A run that has no more steps to make keeps its record.
        """
        console = Console(quiet=not trainer.is_main, highlight=False)
        for note in self.notes if trainer.step else []:
            console.print(note, soft_wrap=True)
        if trainer.step and trainer.progress >= 1.0:
            trainer.record = self.record
            console.print(self._finished(trainer), soft_wrap=True)
            return
        history: list[str] = []
        if trainer.step:
            said = f" with {_listed(self.changes)}" if self.changes else ""
            console.print(f"{self.folder} goes on from step {trainer.step:,}{said}.", soft_wrap=True)
            history = [*self.record.get("changes", []), *(f"{one}, from step {trainer.step:,} on" for one in self.changes)]
        trainer.record = {"settings": self.settings, "fingerprints": self.fingerprints, "changes": history}
        if trainer.is_main:
            save_config(self.config, self.folder, history)

    def _finished(self, trainer: Loop) -> str:
        """That nothing more is learned, by which limit, and what to do about it."""
        budget, key = trainer.loop_config.budget, f"{self.trainer_key}.budget"
        if budget.max_steps is not None and trainer.step >= budget.max_steps:
            limit, setting = f"made {trainer.step:,} steps of max_steps={budget.max_steps}", f"{key}.max_steps"
        else:
            spent = f"{trainer.seconds / 60:.1f} minutes of max_minutes={budget.max_minutes:g}"
            limit, setting = f"learned for {spent}", f"{key}.max_minutes"
        unused = [change for change in self.changes if not change.key.startswith(f"{key}.")]
        rest = f" Not used, since nothing more is learned: {_listed(unused)}." if unused else ""
        return f"{self.folder} has already {limit}: raise {setting} to go on.{rest}"

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{self.folder} holds a run that began with {what}, and cannot go on otherwise: give what it began with, or begin "
            f"another run (out=FOLDER)."
        )


def with_new_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an older run by the names that they have now."""

    def new_name(key: str) -> str:
        for old, new in RENAMED_IN_SOURCES.items():
            if key.startswith("data.sources."):
                key = f"{key}.".replace(f".{old}.", f".{new}.").removesuffix(".")
        for old, new in RENAMED_KEYS.items():
            if key == old or key.startswith(f"{old}."):
                return new + key.removeprefix(old)
        return key

    settings = {new_name(key): value for key, value in settings.items()}
    if "stage.name" in settings:
        settings["stage.name"] = current_name(settings["stage.name"])
    return settings


def flat_settings(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration by its whole name, as JSON has it, but those that only repeat another one."""
    yield from _flat(config, "")


def _flat(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    for key in node:
        name = f"{prefix}{key}"
        if OmegaConf.is_missing(node, key) or _repeats(node, str(key)):
            continue
        try:
            value = node[key]
        except InterpolationToMissingValueError:
            continue  # whoever needs it asks for it by the name that has no value
        if isinstance(value, DictConfig) and len(value):
            yield from _flat(value, f"{name}.")
        else:
            is_tree = isinstance(value, DictConfig | ListConfig)
            yield name, OmegaConf.to_container(value, resolve=True) if is_tree else value


def _repeats(node: DictConfig, key: str) -> bool:
    """Whether a value is another setting's, and nothing else."""
    values = OmegaConf.to_container(node, resolve=False)
    assert isinstance(values, dict)
    raw = values.get(key)
    return isinstance(raw, str) and raw.startswith("${") and raw.endswith("}") and not set(raw[2:-1]) & set("${}:")


def _listed(changes: list[Change]) -> str:
    rest = len(changes) - MOST_SAID
    return ", ".join(str(change) for change in changes[:MOST_SAID]) + (f" and {rest} more (config.yaml)" if rest > 0 else "")


def _shown(value: Any) -> str:
    """As it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(_shown(one) for one in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
