"""How long a query of an index takes, and whether an indexing that is killed again and again ends with every image once.

Vectors are drawn at random around a thousand centres. Queries are timed one by one, as a person asks, from the vector to the
hits. The killed indexing runs in processes of its own, as a user starts it, on a random CLIP; it has to end with the same
entries and the same vectors, to the bit, as one that nobody disturbed.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unimm.data.worlds.shapes import ShapesWorld
from unimm.retrieval.index import Entry, Index, Manifest, read_manifest
from unimm.retrieval.indexing import write_generation

CENTRES = 1000
UNIMM = [sys.executable, "-c", "from unimm.cli import main; main()"]


@dataclass(frozen=True)
class Setting:
    """What is searched: vectors (num, dim); queries that are timed, hits of each."""

    num: int = 100_000
    dim: int = 512
    queries: int = 200
    k: int = 10


def time_queries(setting: Setting, folder: Path) -> dict[str, float]:
    """Make an index in a folder, open it, and ask.

    Returns:
        `median_ms`, `p95_ms`, `slowest_ms` a query; `cpu_ms`, the median of the processor's time alone; `open_seconds`;
        `megabytes` on disk; `found`, the share of queries whose own vector, a little moved, is the first hit.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((min(CENTRES, setting.num), setting.dim), dtype=np.float32)
    vectors = centres[np.arange(setting.num) % len(centres)] + rng.standard_normal((setting.num, setting.dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder) or Manifest("random", "random", setting.dim, "random", 0, 0)
    write_generation(folder, manifest, [Entry(f"{number:07}.jpg", "") for number in range(setting.num)], vectors)
    started = time.perf_counter()
    index = Index.open(folder)
    opened = time.perf_counter() - started
    asked = rng.integers(0, setting.num, setting.queries)
    noise = rng.standard_normal((setting.queries, setting.dim), dtype=np.float32) * 0.2 / setting.dim**0.5
    taken, worked, right = [], [], 0
    for number, moved in zip(asked, noise, strict=True):
        query = vectors[number] + moved
        started, busy = time.perf_counter(), time.process_time()
        (hits,) = index.search_vectors(query[None], setting.k)
        taken.append(1000 * (time.perf_counter() - started))
        worked.append(1000 * (time.process_time() - busy))
        right += hits[0].key == f"{number:07}.jpg"
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    return {
        "median_ms": float(np.median(taken)),
        "p95_ms": float(np.quantile(taken, 0.95)),
        "slowest_ms": max(taken),
        "cpu_ms": float(np.median(worked)),
        "open_seconds": opened,
        "megabytes": size,
        "found": right / setting.queries,
    }


def kill_indexing(num_kills: int, num_images: int, folder: Path, progress: Callable[[str], None]) -> dict[str, float]:
    """Index a folder of pictures undisturbed, and into another index with so many `kill -9` at random times.

    Returns:
        `kills`, those that met a process that was still at it; `images`; `duplicates`, `lost`: entries too many and too few;
        `same_vectors`: 1 where all vectors are those of the undisturbed one, to the bit.

    Raises:
        ValueError: an indexing that was not killed failed.
    """
    pictures, model = folder / "pictures", folder / "clip"
    pictures.mkdir(parents=True)
    world = ShapesWorld("test", num_images)
    for number in range(num_images):
        image = world[number].image
        assert isinstance(image, np.ndarray)
        Image.fromarray(image).save(pictures / f"{number:05}.png")
    random_clip(model)
    command = [*UNIMM, "index", str(pictures), "--model", str(model), "--batch-size", "8", "--out"]
    progress("undisturbed")
    started = time.monotonic()
    _finish([*command, str(folder / "whole")])
    seconds = time.monotonic() - started
    rng, kills = np.random.default_rng(0), 0
    for number in range(num_kills):
        progress(f"kill {number + 1} of {num_kills}")
        process = subprocess.Popen([*command, str(folder / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:  # most of the time of a short indexing is its start
            process.wait(seconds * (0.5 + 0.5 * float(rng.random())))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() != 0
    _finish([*command, str(folder / "killed")])
    whole, killed = Index.open(folder / "whole"), Index.open(folder / "killed")
    keys = [entry.key for entry in killed.entries]
    wanted = {path.name for path in pictures.iterdir()}
    vectors = [one.vectors.reconstruct_n(0, len(one)) for one in (whole, killed)]
    return {
        "kills": kills,
        "images": num_images,
        "duplicates": len(keys) - len(set(keys)),
        "lost": len(wanted - set(keys)),
        "same_vectors": float(whole.entries == killed.entries and np.array_equal(*vectors)),
    }


def random_clip(folder: Path) -> None:
    """A CLIP of transformers with random weights that reads letters, at 224 px."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(number) for number in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**sizes, **ends, "vocab_size": len(pieces)}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "patch_size": 32}, projection_dim=128)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def _finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"The indexing failed: {done.stderr.strip().splitlines()[-1]}")
