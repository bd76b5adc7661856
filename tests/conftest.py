"""What tests share: a tiny model with random weights, made in a second, in memory and as a folder on disk.

Nothing large is imported before it is used: the process that only hands tests out to others reads this file, too.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny matrices lose more to threads than they gain

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from PIL import Image

    from unimm.data.text import TextTokenizer
    from unimm.inference.engine import Engine
    from unimm.models.image_tokenizer.model import ImageTokenizer
    from unimm.models.unified import UnifiedModel

# Where tests run in the background, a shell has told them to ignore Ctrl-C, and their children would too: some send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Time says something of the machine and what else it does, nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


NORMAL, STORIES = "not slow and not gpu", "slow"
MAX_PROCESSES = {NORMAL: 4, STORIES: 2}
"""Of a whole run, by its marks (pyproject.toml's, or those of stories): each takes about two gigabytes, with its children."""

DISTRIBUTED = {NORMAL: "loadfile", STORIES: "loadgroup"}
"""What a file makes once is made once; of stories, only those stay together that share such a thing."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite, and all stories (`-m slow`), run in several processes where pytest-xdist is installed; `-n 0` or a named
    file keeps them in one. A story computes with one thread. GPU tests have the machine to themselves.
    """
    most = MAX_PROCESSES.get(config.option.markexpr, 1)
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and most > 1
    if is_whole and config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if config.option.numprocesses is None and not config.option.usepdb and not config.option.collectonly and num_cores > 1:
            config.option.numprocesses = min(num_cores, most)
            config.option.dist = DISTRIBUTED[config.option.markexpr]
            config.option.loadscopereorder = config.option.markexpr == NORMAL  # stories come in an order of their own


@functools.cache
def names_a_story(file: Path) -> bool:
    return "mark.slow" in file.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Stories are looked for where there are any: reading all tests takes longer than some of them."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if config.option.markexpr == STORIES and is_test and not names_a_story(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of stories the longest begin first, by the seconds that their mark tells, so that no process waits for one at the end."""
    stories = [item for item in items if item.get_closest_marker("slow") is not None]
    for item in stories:
        assert names_a_story(item.path), f"{item.path}: `pytest -m slow` finds what has 'mark.slow' in its own file"
    if config.option.markexpr == STORIES:
        items.sort(key=lambda item: -max((mark.kwargs.get("seconds", 0) for mark in item.iter_markers("slow")), default=0))
        for item in stories if hasattr(config, "workerinput") else []:
            if makes_something_of_its_file(item):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))


def makes_something_of_its_file(item: pytest.Item) -> bool:
    """It uses a fixture that its file makes once."""
    file = item.nodeid.partition("::")[0]
    made = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009  pytest has no public name for it
    return any(fixture.scope == "module" and fixture.baseid == file for fixtures in made for fixture in fixtures)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been imported by now stays until the end: the collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`pytest -m slow` chooses slow tests for GPUs, too."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


SENTENCES = (
    "A small red circle and a large blue square.",
    "There are three green triangles; one is left of the cross.",
    "What colour is the square? How many circles are there?",
    "一个小的红色圆形，两个大的蓝色正方形。",
)


def tiny_text_tokenizer() -> TextTokenizer:
    """A byte-level BPE of at most 400 tokens."""
    from unimm.data.text import train_byte_bpe

    return train_byte_bpe(SENTENCES, 400)


def tiny_model(vocabulary_size: int, max_positions: int = 256) -> UnifiedModel:
    """Trunk of 2 layers of 64; looks at 16 px in 4 patches; draws 4 codes of 32. Weights are large, so that choices differ."""
    import torch

    from unimm.models.unified import CodesConfig, UnifiedConfig, UnifiedModel
    from unimm.models.vision.tower import VisionConfig

    torch.manual_seed(0)
    config = UnifiedConfig(
        trunk={
            "model_type": "llama",
            "vocab_size": vocabulary_size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": max_positions,
            "initializer_range": 0.2,
        },
        vision=VisionConfig(image_size=16, patch_size=8, width=32, num_layers=1, num_heads=2),
        codes=CodesConfig(num_codes=4, codebook_size=32),
    )
    return UnifiedModel(config).eval()


def tiny_image_tokenizer() -> ImageTokenizer:
    """16 px as 2x2 codes of 32."""
    import torch

    from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
    from unimm.models.image_tokenizer.quantizers import QuantizerConfig

    torch.manual_seed(0)
    quantizer = QuantizerConfig(codebook_size=32, code_dim=8)
    config = ImageTokenizerConfig(
        image_size=16, base_channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, quantizer=quantizer
    )
    return ImageTokenizer(config).freeze()


@pytest.fixture(scope="session")
def tiny_engine() -> Engine:
    """An engine with random weights. Do not change it."""
    from unimm.checkpoints.bundle import DEFAULT, ModelBundle
    from unimm.inference.engine import Engine

    tokenizer = tiny_text_tokenizer()
    return Engine(ModelBundle(tiny_model(len(tokenizer)), {DEFAULT: tiny_image_tokenizer()}, tokenizer))


@pytest.fixture(scope="session")
def tiny_folder(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder. Do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_engine.save(folder)
    return folder


@pytest.fixture(scope="session")
def clips_place(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one that takes videos, in model/, and clips in clips_files/. Do not change them."""
    from unimm.data.template import PromptFormat
    from unimm.data.video.choosing import VideoFormat
    from unimm.data.worlds.clips import ClipsWorld, write_clips

    av = pytest.importorskip("av", reason='PyAV is not installed: pip install "unimm[video]"')
    if "libx264" not in av.codecs_available:
        pytest.skip("PyAV has no libx264 here, with which the clips are written")
    folder = tmp_path_factory.mktemp("clips")
    takes_videos = PromptFormat(video=VideoFormat(num_frames=8, frame_positions=1, time_text=""))
    replace(tiny_engine.bundle, prompt_format=takes_videos).save(folder / "model")
    write_clips(folder / "clips_files", ClipsWorld("test", 3))
    return folder


@pytest.fixture(scope="module")
def small_windows() -> Iterator[None]:
    """Trainings here plan a few steps at a time, not `packing.WINDOW_ROWS` rows, all of whose samples are made to be measured:
    a hundred times what a toy run learns from. Tests of plans have whole windows."""
    from unimm.data import packing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_ROWS", 24)
        yield


@pytest.fixture(scope="module")
def few_texts() -> Iterator[None]:
    """Text tokenizers of trainings, also of those in forks of this process, learn from the texts of fewer records."""
    from unimm.cli import builders

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "RECORDS_FOR_TEXT", 200)
        yield


@pytest.fixture(scope="session")
def configurations_read_once() -> Iterator[None]:
    """Hydra reads all its files anew for each configuration that it composes, which is a third of its time: here it reads one
    again where it has changed."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    read, known = FileConfigSource.load_config, {}

    def load_config(source: FileConfigSource, config_path: str) -> object:
        file = Path(source.path, source._normalize_file_name(config_path))
        if not file.is_file():
            return read(source, config_path)
        state = file.stat()
        key = (file, source.provider, state.st_mtime_ns, state.st_size)
        if key not in known:
            known[key] = read(source, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_config)
        yield


@pytest.fixture
def picture() -> Image.Image:
    """An image of 24x16 px that is not one colour."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
