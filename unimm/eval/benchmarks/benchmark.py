"""What a public benchmark of drawings is: prompts of a file, names of the images that its scorer takes, results that it writes.

A benchmark is a subclass of `Benchmark`. It reads its own prompt file into prompts, names the files of each, and reads the
scorer's results into a `ScoreTable`. Drawing is the same for all of them (`unimm.eval.benchmarks.export`).

An image's seed is a hash of (benchmark, the user's seed, prompt, sample): the same image in any process, in any batch, and from
a prompt file of which lines were left out. Where a prompt occurs again, its occurrence is hashed too.
"""

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL import Image

    from unimm.data.records import ImageLike
    from unimm.inference.engine import Engine

Z_95 = 1.959964
"""Standard deviations to either side that hold 95 % of a normal distribution."""

SAFE_NAME = re.compile(r"[\w-]+")
"""Names from a prompt file that become names of files."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. key: its name in the benchmark. number: its place in its file. facts: what the scorer knows of it. image:
    what it asks to change, where it does."""

    key: str
    text: str
    number: int
    facts: dict[str, Any] = field(default_factory=dict)
    image: "ImageLike | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Row:
    """One line of a table. value: in the table's unit. error: its standard error, None where the results do not tell.
    count: the items that it is of."""

    label: str
    value: float
    error: float | None
    count: int


@dataclass(frozen=True)
class ScoreTable:
    """What a scorer found.

    unit: of all values, "share", "percent" or "points".
    total: the benchmark's own one number; None where it has none, or a part of it is missing.
    rows: its parts.
    missing: items that the results lack, of `expected`.
    judge: what scored, where the results tell.
    edition: ends the score's name, where a benchmark has had several.
    """

    unit: str
    total: Row | None
    rows: list[Row]
    missing: int
    expected: int
    judge: str = ""
    edition: str = ""


class Benchmark(ABC):
    """A benchmark's table of facts, and what it reads and writes.

    name: of the command. title: for people. source: where prompts and scorer are from, with the commit that was read.
    num_prompts: of the whole benchmark. num_chosen: of those that its file has, where it is a part; None: all.
    num_images: of each prompt, in one file where `is_grid`.
    results: patterns of the files that the scorer writes. scorer: how it is called, with {out}, {model}, {size} and
    {num_images} of the export (`scorer_line`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    num_prompts: ClassVar[int]
    num_chosen: ClassVar[int | None] = None
    num_images: ClassVar[int]
    is_grid: ClassVar[bool] = False
    results: ClassVar[tuple[str, ...]]
    scorer: ClassVar[str]

    @abstractmethod
    def read(self, path: Path) -> list[Prompt]:
        """The prompts of the benchmark's own file or folder. ValueError: it has another form."""

    @abstractmethod
    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """Where a prompt's images go, below the export's folder: one file each, or one of all in a grid."""

    @abstractmethod
    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """The table of the scorer's results.

        Args:
            paths: labels that the user gave (or ""), and the files.
            prompts: of the export; none where there was none, and the whole benchmark is expected.

        Raises:
            ValueError: a file has another form, or an item twice.
        """

    def scorer_line(self, out: Path, manifest: dict[str, Any] | None = None) -> str:
        """How the scorer is called for the export in a folder. manifest: its own; None: there is none."""
        known = manifest or {}
        settings = {"name": "NAME", "num_images": self.num_images} | known.get("settings", {})
        size, model, num = known.get("image_size", "SIZE"), settings["name"], settings["num_images"]
        return self.scorer.format(out=out.absolute(), model=model, size=size, num_images=num)

    def check(self, engine: "Engine", prompt: Prompt) -> None:
        """ValueError: the model can never draw this prompt."""
        from unimm.inference.drawing import drawing_requests

        num_codes = engine.image_tokenizer.num_codes
        for request in drawing_requests(engine.template, num_codes, prompt.text, (1, 1), 0, engine.drawing, {}):
            engine.decoder.check(request)

    def draw(
        self, engine: "Engine", prompts: list[Prompt], seeds: list[int], callback: Callable[[Any], None], **drawing: Any
    ) -> list["Image.Image"]:
        """An image for each prompt. drawing: settings of `Engine.generate_images`."""
        texts = [prompt.text for prompt in prompts]
        drawn = engine.generate_images(texts, num_images=1, seed=seeds, callback=callback, **drawing)
        return [image for (image,) in drawn]

    def originals(self, prompt: Prompt, model_name: str) -> dict[str, "ImageLike"]:
        """Images that the scorer looks for beside those that are made, and their names, which end in .png."""
        return {}

    def beside(self, prompt: Prompt) -> dict[str, str]:
        """Further files of a prompt, and what is in them."""
        return {}

    def finish(self, prompts: list[Prompt], out: Path, num_images: int, model_name: str) -> dict[str, str]:
        """Files of the whole export, written when all images are there, and what is in them."""
        return {}


def seed_of(benchmark: str, seed: int, prompt: str, occurrence: int, sample: int) -> int:
    """The seed of an image, below 2^63. occurrence: how many equal prompts stand before this one."""
    text = json.dumps([benchmark, seed, prompt, occurrence, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def choose_prompts(prompts: list[Prompt], count: int | None) -> list[Prompt]:
    """So many of the prompts, chosen by a hash of their keys, in their order and numbered anew.

    count: None, or more than there are: all of them.
    """
    if count is None or count >= len(prompts):
        return prompts
    chosen = sorted((prompt.key for prompt in prompts), key=lambda key: hashlib.sha256(key.encode()).digest())[:count]
    kept, numbers, found = {*chosen}, Counter(), []
    for prompt in prompts:
        if prompt.key in kept:
            file = prompt.key.rpartition("/")[0]
            found.append(replace(prompt, number=numbers[file]))
            numbers[file] += 1
    return found


def mean_and_error(groups: Iterable[list[float]]) -> tuple[float, float | None, int]:
    """The mean over all values, its standard error, and how many values there are.

    Values of a group (images of one prompt) are not independent: the error is that of groups (Liang and Zeger 1986). None of
    fewer than two groups.
    """
    kept = [group for group in groups if group]
    count = sum(map(len, kept))
    if not count:
        return math.nan, None, 0
    mean = math.fsum(value for group in kept for value in group) / count
    if len(kept) < 2:
        return mean, None, count
    residuals = math.fsum((math.fsum(group) - len(group) * mean) ** 2 for group in kept)
    return mean, math.sqrt(residuals * len(kept) / (len(kept) - 1)) / count, count


def interval_of(value: float, error: float | None) -> list[float] | None:
    """The 95 % interval of a value with a standard error; None where this is not known, or not finite."""
    if error is None or not math.isfinite(value) or not math.isfinite(error):
        return None
    return [value - Z_95 * error, value + Z_95 * error]


def weighted_total(label: str, rows: list[Row], weights: dict[str, float]) -> Row | None:
    """The weighted sum of independent rows; None where a row is missing."""
    known = {row.label: row for row in rows}
    if any(name not in known for name in weights):
        return None
    parts = [(known[name], weight) for name, weight in weights.items()]
    errors = [row.error for row, _ in parts]
    error = None
    if all(one is not None for one in errors):
        error = math.sqrt(math.fsum((weight * (row.error or 0.0)) ** 2 for row, weight in parts))
    return Row(label, math.fsum(weight * row.value for row, weight in parts), error, sum(row.count for row, _ in parts))


def read_json_file(path: Path) -> Any:
    """What a JSON file holds. ValueError: there is none, or it is no JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is not JSON ({error}).") from None


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines. ValueError: a line is none."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is expected in every line.")
        found.append((number, content))
    if not found:
        raise ValueError(f"{path} is empty.")
    return found


def read_text(path: Path) -> str:
    """A file as text, with or without a byte order mark. ValueError: there is none, or it is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file.") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name the file in it.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8.") from None


def need(content: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str, benchmark: str) -> Any:
    """A field of a record. ValueError: it is missing, or of another kind."""
    value = content.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: this is not {benchmark}'s form, which has a field '{name}'.")
    return value


def checked_prompt(text: str, where: str) -> str:
    """A prompt without the spaces around it. ValueError: nothing is left."""
    if not text.strip():
        raise ValueError(f"{where}: the prompt is empty.")
    return text.strip()


def checked_name(name: str, where: str) -> str:
    """A name that becomes a file's. ValueError: it has other than letters, digits, - and _."""
    if not SAFE_NAME.fullmatch(name):
        raise ValueError(f"{where}: '{name}' cannot name an image's file; letters, digits, - and _ can.")
    return name


def refuse_twice(key: str, seen: set[str], where: str) -> None:
    """Note a key. ValueError: it was there before."""
    if key in seen:
        raise ValueError(f"{where}: {key} is there twice.")
    seen.add(key)


def count_missing(found: set[str], expected: set[str], paths: list[tuple[str, Path]]) -> int:
    """How many expected items were not found. ValueError: one was found that nobody expects."""
    if unknown := sorted(found - expected):
        names = ", ".join(str(path) for _, path in paths)
        raise ValueError(f"{names}: {len(unknown):,} items are none of this export's, such as {unknown[0]}.")
    return len(expected - found)
