"""Draws a benchmark's prompts into the files that its scorer takes; in any number of processes, and goes on where it stopped.

    OUT/manifest.json       what is drawn, and how: benchmark, model, prompt file, settings, versions
    OUT/prompts.jsonl       a line a prompt: key, prompt, files, seeds, facts
    OUT/...                 the images, where the scorer looks for them
    .OUT.unfinished/        files that are being written; gone when all images are there

An image is written beside OUT, flushed to disk, and only then renamed into it: what a kill has left half-written is never read.
All prompts are cut into batches once; a process (`shard`) takes every n-th batch, and one in which a file is missing is drawn
again whole. So any process draws a batch with the same neighbours: the same images in reduced precision, too.
"""

import hashlib
import json
import math
import platform
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from unimm.data.image import decode_image
from unimm.eval.benchmarks.benchmark import Benchmark, Prompt, seed_of
from unimm.runtime.atomic_files import check_replaceable, flush, read_json, write_json
from unimm.runtime.number_checks import check_whole
from unimm.runtime.provenance import write_image
from unimm.runtime.resumable_folder import workspace_of
from unimm.runtime.version import package_version

if TYPE_CHECKING:
    from unimm.inference.drawing import DrawingProgress
    from unimm.inference.engine import Engine

MANIFEST, PROMPTS = "manifest.json", "prompts.jsonl"
WHAT = "an export of unimm"
WEBP_QUALITY = 80
"""Pillow's own, which OneIG-Bench's script writes with."""


@dataclass(frozen=True)
class ExportSettings:
    """How images are drawn. None: as the model's own generation_config.json says.

    num_images: a prompt. batch: images at once. name: of the model, where a benchmark's folders name it.
    """

    num_images: int
    seed: int = 0
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    batch: int = 16
    name: str = "unimm"

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_images", "batch")


@dataclass(frozen=True)
class Shard:
    """Which of how many processes this one is."""

    number: int = 0
    count: int = 1


WHOLE = Shard()
"""The only process."""


class Unit(NamedTuple):
    """What is written at once: one file, and the samples of the prompt that it shows."""

    prompt: Prompt
    file: str
    samples: tuple[int, ...]


class Export:
    """A benchmark's images in the making.

    Args:
        benchmark: of `BENCHMARKS`.
        prompts: that it has read, all or some of them.
        prompts_digest: of the file that they are from (`digest_of`).
        out: the folder.

    Raises:
        ValueError: something else lies there, or an export of another model, of other prompts or with other settings; or the
            model cannot draw one of the prompts.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        engine: "Engine",
        prompts: list[Prompt],
        prompts_digest: str,
        settings: ExportSettings,
        out: Path,
    ) -> None:
        self.benchmark, self.engine, self.prompts, self.settings, self.out = benchmark, engine, prompts, settings, out
        self.units = _units(benchmark, prompts, settings)
        self.seeds = _seeds(benchmark.name, prompts, settings)
        self.manifest = self._describe(prompts_digest)
        check_replaceable(out, MANIFEST, WHAT)
        self.note = self._compare(read_json(out / MANIFEST))
        self._check_prompts()

    def run(self, shard: Shard = WHOLE, progress: Callable[[int], object] = lambda _: None) -> int:
        """Draw what is missing of this process' share. Returns how many files of all processes are missing then."""
        self.begin()
        self.draw(self.missing(shard), progress)
        return self.finish()

    def begin(self) -> None:
        """Write what says what is drawn, and small files beside the images; any process does, and all write the same.

        Raises:
            ValueError: meanwhile another process has begun something else there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if not (self.out / MANIFEST).is_file():
            self._write(MANIFEST, lambda path: write_json(path, self.manifest))
            self._compare(read_json(self.out / MANIFEST))
        if not (self.out / PROMPTS).is_file():
            self._write_text(PROMPTS, self._prompt_lines())
        for prompt in self.prompts:
            for name, text in self.benchmark.beside(prompt).items():
                if not (self.out / name).is_file():
                    self._write_text(name, text)
            for name, image in self.benchmark.originals(prompt, self.settings.name).items():
                if not is_whole(self.out / name):
                    self._save(decode_image(image), name)

    def batches(self, shard: Shard = WHOLE) -> list[list[Unit]]:
        """A process' share of all units, so many at a time as make a batch of images."""
        size = max(1, self.settings.batch // self.images_a_unit)
        return [self.units[start : start + size] for start in range(0, len(self.units), size)][shard.number :: shard.count]

    def missing(self, shard: Shard = WHOLE) -> list[list[Unit]]:
        """Those batches of a process' share in which a file is not there whole."""
        return [batch for batch in self.batches(shard) if not all(is_whole(self.out / unit.file) for unit in batch)]

    def num_images(self, batches: list[list[Unit]]) -> int:
        """How many images batches have."""
        return self.images_a_unit * sum(map(len, batches))

    @property
    def images_a_unit(self) -> int:
        """How many images a file shows."""
        return self.settings.num_images if self.benchmark.is_grid else 1

    def draw(self, batches: list[list[Unit]], progress: Callable[[int], object] = lambda _: None) -> None:
        """Draw batches. progress: called with how many images more are there, those counted that are partly drawn."""
        done = 0
        for number, batch in enumerate(batches):
            before = self.num_images(batches[:number])

            def advance(share: float, before: int = before, batch: list[Unit] = batch) -> None:
                nonlocal done
                now = before + int(share * self.num_images([batch]))
                progress(now - done)
                done = now

            self._draw(batch, advance)
            advance(1.0)

    def finish(self) -> int:
        """How many files of all processes are missing; where none is, what belongs to the whole is written."""
        missing = sum(not (self.out / unit.file).is_file() for unit in self.units)
        if not missing:
            whole = self.benchmark.finish(self.prompts, self.out.absolute(), self.settings.num_images, self.settings.name)
            for name, text in whole.items():
                self._write_text(name, text)
            shutil.rmtree(workspace_of(self.out), ignore_errors=True)
        return missing

    def _describe(self, prompts_digest: str) -> dict[str, Any]:
        import torch

        given = asdict(self.settings)
        own = {name: getattr(self.engine.drawing, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}
        drawing = {name: value if given[name] is None else given[name] for name, value in own.items()}
        rest = {name: given[name] for name in ("seed", "num_images", "name")}
        dtype = str(next(self.engine.model.parameters()).dtype).removeprefix("torch.")
        computed = {"dtype": dtype, "weights": self.engine.weights}
        if dtype != "float32" or self.engine.weights:  # there, sums depend on what else is in the batch
            computed["batch"] = self.settings.batch
        return {
            "benchmark": self.benchmark.name,
            "source": self.benchmark.source,
            "model": self.engine.model_hash,
            "prompts": {"sha256": prompts_digest, "count": len(self.prompts)},
            "settings": drawing | rest | computed,
            "image_size": self.engine.image_tokenizer.image_size,
            "versions": {"unimm": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        }

    def _compare(self, begun: dict[str, Any] | None) -> str:
        """A note where versions differ."""
        if begun is None:
            return ""
        for name in ("benchmark", "model", "prompts", "settings", "image_size"):
            old, new = begun.get(name), self.manifest[name]
            if isinstance(old, dict) and isinstance(new, dict):
                differ = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
                name, old, new = (f"{name}.{differ[0]}", old.get(differ[0]), new.get(differ[0])) if differ else (name, 0, 0)
            if old != new:
                raise ValueError(
                    f"{self.out} was begun with another {name} ({_short(old)}, now {_short(new)}): repeat the command that "
                    "began it to go on, or choose another --out."
                )
        if begun.get("versions") == self.manifest["versions"]:
            return ""
        return f"{self.out} was begun with other versions ({begun.get('versions')}): images may differ where scores are close."

    def _check_prompts(self) -> None:
        """Say at once, and not hours later, that a prompt is too long for the model."""
        for prompt in self.prompts:
            try:
                self.benchmark.check(self.engine, prompt)
            except ValueError as error:
                raise ValueError(f"Prompt {prompt.key} ({_short(prompt.text)}) cannot be drawn: {error}") from None

    def _prompt_lines(self) -> str:
        lines = []
        for prompt in self.prompts:
            files = self.benchmark.files(prompt, self.settings.num_images, self.settings.name)
            said = {"key": prompt.key, "prompt": prompt.text, "number": prompt.number, "files": files}
            lines.append(json.dumps({**said, "seeds": self.seeds[prompt.key], "facts": prompt.facts}, ensure_ascii=False))
        return "".join(f"{line}\n" for line in lines)

    def _draw(self, batch: list[Unit], advance: Callable[[float], None]) -> None:
        prompts = [unit.prompt for unit in batch for _ in unit.samples]
        seeds = [self.seeds[unit.prompt.key][sample] for unit in batch for sample in unit.samples]
        given = asdict(self.settings)
        drawing = {name: given[name] for name in ("guidance_scale", "temperature", "top_k", "top_p")}

        def report(state: "DrawingProgress") -> None:
            advance(state.step / state.num_steps)

        images = iter(self.benchmark.draw(self.engine, prompts, seeds, report, **drawing))
        for unit in batch:
            mine = [next(images) for _ in unit.samples]
            if is_whole(self.out / unit.file):  # and perhaps the last one: another process may have taken the workspace away
                continue
            self._save(mine[0] if len(mine) == 1 and not self.benchmark.is_grid else make_grid(mine), unit.file)
        for folder in {(self.out / unit.file).parent for unit in batch}:
            flush(folder)

    def _save(self, image: Image.Image, name: str) -> None:
        if name.endswith(".webp"):
            self._write(name, lambda path: write_image(image, path, format="WEBP", quality=WEBP_QUALITY))
        else:
            self._write(name, lambda path: write_image(image, path, format="PNG"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        final, workspace = self.out / name, workspace_of(self.out)
        workspace.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = workspace / f"{secrets.token_hex(8)}.tmp"
        write(temporary)
        flush(temporary)
        temporary.replace(final)

    def _write_text(self, name: str, text: str) -> None:
        self._write(name, lambda path: path.write_text(text, encoding="utf-8"))


def digest_of(path: Path) -> str:
    """sha256 of a prompt file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" if path.is_dir() else b"")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_export(out: Path) -> tuple[dict[str, Any], list[Prompt]]:
    """The manifest and the prompts of an export. ValueError: there is none."""
    manifest = read_json(out / MANIFEST)
    if manifest is None or "benchmark" not in manifest or not (out / PROMPTS).is_file():
        raise ValueError(f"{out} is not {WHAT}.")
    lines = [json.loads(line) for line in (out / PROMPTS).read_text(encoding="utf-8").splitlines()]
    return manifest, [Prompt(line["key"], line["prompt"], line["number"], line["facts"]) for line in lines]


def make_grid(images: list[Image.Image]) -> Image.Image:
    """Images of one size in a square, row by row; what is left over is black."""
    side = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new("RGB", (side * width, math.ceil(len(images) / side) * height))
    for place, image in enumerate(images):
        grid.paste(image, (place % side * width, place // side * height))
    return grid


def is_whole(path: Path) -> bool:
    """Whether an image is there, and its checksums, where its format has some, hold."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _units(benchmark: Benchmark, prompts: list[Prompt], settings: ExportSettings) -> list[Unit]:
    samples = range(settings.num_images)
    groups = [tuple(samples)] if benchmark.is_grid else [(sample,) for sample in samples]
    return [
        Unit(prompt, file, group)
        for prompt in prompts
        for file, group in zip(benchmark.files(prompt, settings.num_images, settings.name), groups, strict=True)
    ]


def _seeds(benchmark: str, prompts: list[Prompt], settings: ExportSettings) -> dict[str, list[int]]:
    """Of the images of each prompt, by its key."""
    seen: dict[str, int] = {}
    found = {}
    for prompt in prompts:
        occurrence = seen.get(prompt.text, 0)
        seen[prompt.text] = occurrence + 1
        samples = range(settings.num_images)
        found[prompt.key] = [seed_of(benchmark, settings.seed, prompt.text, occurrence, sample) for sample in samples]
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
