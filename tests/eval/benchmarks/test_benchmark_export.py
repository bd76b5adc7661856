"""Exports: the scorer's files, the same images in any number of processes and after a kill, nothing of others overwritten."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model
from PIL import Image
from prompt_files import GENEVAL, lines, write_prompts

from unimm.checkpoints.bundle import ModelBundle
from unimm.eval.benchmarks.benchmark import Benchmark
from unimm.eval.benchmarks.export import Export, ExportSettings, Shard, digest_of, make_grid, read_export
from unimm.eval.benchmarks.table import BENCHMARKS
from unimm.inference.engine import Engine
from unimm.runtime.provenance import read_provenance

GENEVAL_BENCHMARK = BENCHMARKS["geneval"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_prompts(tmp_path / "prompts")


def export(engine: Engine, path: Path, out: Path, benchmark: Benchmark = GENEVAL_BENCHMARK, **settings) -> Export:
    chosen = ExportSettings(**{"num_images": 2, "guidance_scale": 2.0, "batch": 4, **settings})
    return Export(benchmark, engine, benchmark.read(path), digest_of(path), chosen, out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_geneval_finds_what_it_looks_for(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """As evaluate_images.py lists it; images are those of their seeds, and a prompt that is there twice is drawn anew."""
    out = tmp_path / "out"
    assert export(tiny_engine, files["geneval"], out).run() == 0
    found = {}
    for folder in out.iterdir():
        if folder.is_dir() and folder.name.isdigit():
            metadata = json.loads((folder / "metadata.jsonl").read_text())
            found[folder.name] = (metadata, sorted(path.name for path in (folder / "samples").iterdir()))
    assert found == {f"{number:05}": (line, ["0000.png", "0001.png"]) for number, line in enumerate(GENEVAL)}
    manifest, prompts = read_export(out)
    assert manifest["model"] == tiny_engine.model_hash and manifest["settings"]["guidance_scale"] == 2.0
    assert manifest["settings"]["temperature"] == 1.0 and set(manifest["versions"]) == {"unimm", "torch", "python"}
    assert [prompt.text for prompt in prompts] == [line["prompt"] for line in GENEVAL]
    said = read_provenance(out / "00001/samples/0001.png")
    assert said is not None and said["prompt"] == "a photo of two cows"
    seeds = [json.loads(line)["seeds"] for line in (out / "prompts.jsonl").read_text().splitlines()]
    (image,) = tiny_engine.generate_images("a photo of two cows", seed=seeds[1][1], guidance_scale=2.0)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(out / "00001/samples/0001.png")))
    assert len({seed for own in seeds for seed in own}) == 6


def test_a_grid_has_its_images_row_by_row(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """As compute_dpg_bench.py cuts it; and nothing else is in the folder that it lists."""
    out = tmp_path / "out"
    export(tiny_engine, files["dpg"], out, BENCHMARKS["dpg"], num_images=4).run()
    assert sorted(path.name for path in (out / "images").iterdir()) == ["10.png", "9.png"]
    seeds = json.loads((out / "prompts.jsonl").read_text().splitlines()[1])["seeds"]
    grid, size = Image.open(out / "images/10.png"), 16
    for seed, (x, y) in zip(seeds, ((0, 0), (size, 0), (0, size), (size, size)), strict=True):
        (image,) = tiny_engine.generate_images("A long prompt, the tenth.", seed=seed, guidance_scale=2.0)
        assert grid.crop((x, y, x + size, y + size)).tobytes() == image.tobytes()


def test_grids_of_other_numbers() -> None:
    images = [Image.new("RGB", (2, 3), (shade, 0, 0)) for shade in (10, 20, 30)]
    assert make_grid(images[:1]).size == (2, 3) and make_grid(images[:2]).size == (4, 3)
    assert make_grid(images).size == (4, 6) and make_grid(images).getpixel((3, 5)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["oneig", "t2i-compbench", "geneval2", "coco", "wise"])
def test_the_other_benchmarks_are_written(name: str, tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    benchmark, out = BENCHMARKS[name], tmp_path / "out"
    making = export(tiny_engine, files[name], out, benchmark, num_images=min(benchmark.num_images, 4), batch=64)
    assert making.run() == 0
    expected = {unit.file for unit in making.units} | {"manifest.json", "prompts.jsonl"}
    expected |= {"geneval2": {"images.json"}, "coco": {"captions.jsonl"}}.get(name, set())
    assert set(contents(out)) == expected
    if name == "oneig":
        image = Image.open(out / "images/anime/unimm/000.webp")
        assert image.size == (32, 32) and image.format == "WEBP"
    if name == "geneval2":
        assert {*json.loads((out / "images.json").read_text())} == {"two red cats", "a dog"}
        assert all(Path(path).is_absolute() for path in json.loads((out / "images.json").read_text()).values())


def test_two_processes_draw_what_one_does(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """And other batches; and from a prompt file of which a line was left out, the same images for the others."""
    export(tiny_engine, files["geneval"], tmp_path / "one").run()
    assert export(tiny_engine, files["geneval"], tmp_path / "two").run(Shard(1, 2)) > 0
    assert export(tiny_engine, files["geneval"], tmp_path / "two").run(Shard(0, 2)) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    export(tiny_engine, files["geneval"], tmp_path / "three", batch=1).run()
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    export(tiny_engine, lines(tmp_path / "part.jsonl", GENEVAL[1:]), tmp_path / "part").run()
    part, whole = contents(tmp_path / "part"), contents(tmp_path / "one")
    assert part["00000/samples/0001.png"] == whole["00001/samples/0001.png"]
    assert part["00001/samples/0001.png"] == whole["00000/samples/0001.png"]


def test_a_killed_export_goes_on(
    tiny_engine: Engine, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a file, which stays half-written beside the folder; and one that was cut later is drawn again."""
    out = tmp_path / "out"
    export(tiny_engine, files["geneval"], tmp_path / "whole").run()
    making, writes = export(tiny_engine, files["geneval"], out), []
    save = making._save

    def killed(image: Image.Image, name: str) -> None:
        if len(writes) == 5:
            (making.out.parent / ".out.unfinished/half.tmp").write_bytes(b"\x89PNG half")
            raise KeyboardInterrupt
        writes.append(name)
        save(image, name)

    monkeypatch.setattr(making, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        making.run()
    assert len([path for path in contents(out) if path.endswith(".png")]) == 5
    cut = out / writes[0]
    cut.write_bytes(cut.read_bytes()[:-20])
    again = export(tiny_engine, files["geneval"], out)
    assert len(again.missing()) == 2
    seen = []
    assert again.run(progress=seen.append) == 0
    assert sum(seen) == 6 and all(more >= 0 for more in seen)
    assert contents(out) == contents(tmp_path / "whole") and not (tmp_path / ".out.unfinished").exists()
    assert export(tiny_engine, files["geneval"], out).missing() == []


def test_another_models_folder_is_refused(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    """Another model, other settings, other prompts, another benchmark, a folder of something else: nothing changes."""
    out = tmp_path / "out"
    export(tiny_engine, files["geneval"], out).run()
    before = contents(out)
    other = tiny_model(len(tiny_engine.tokenizer))
    other.load_state_dict({name: value + 1 for name, value in other.state_dict().items()})
    bundle = tiny_engine.bundle
    changed = Engine(ModelBundle(other, bundle.image_tokenizers, bundle.tokenizer))
    less = lines(tmp_path / "less.jsonl", GENEVAL[:2])
    for told, make in {
        "another model": lambda: export(changed, files["geneval"], out),
        "settings.guidance_scale (2.0, now 3.0)": lambda: export(tiny_engine, files["geneval"], out, guidance_scale=3.0),
        "settings.num_images": lambda: export(tiny_engine, files["geneval"], out, num_images=3),
        "settings.seed": lambda: export(tiny_engine, files["geneval"], out, seed=1),
        "prompts.count": lambda: export(tiny_engine, less, out),
        "another benchmark": lambda: export(tiny_engine, files["dpg"], out, BENCHMARKS["dpg"]),
        "is not an export of unimm": lambda: export(tiny_engine, files["geneval"], tmp_path / "prompts"),
    }.items():
        with pytest.raises(ValueError) as refused:
            make().run()
        assert told in str(refused.value) and "\n" not in str(refused.value)
    assert contents(out) == before
    export(tiny_engine, files["geneval"], out, batch=5)  # in float32 a batch changes nothing


def test_a_prompt_that_is_too_long_is_refused_at_once(tiny_engine: Engine, tmp_path: Path) -> None:
    path = lines(tmp_path / "long.jsonl", [*GENEVAL, {**GENEVAL[0], "prompt": "red " * 400}])
    with pytest.raises(ValueError, match=r"Prompt 00003 \(red red red \.\.\.\) cannot be drawn: .*positions"):
        export(tiny_engine, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_versions_are_told_of(tiny_engine: Engine, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny_engine, files["wise"], out, BENCHMARKS["wise"], num_images=1).run()
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"versions": {"torch": "1.0"}}))
    assert "other versions" in export(tiny_engine, files["wise"], out, BENCHMARKS["wise"], num_images=1).note


def test_in_reduced_precision_batches_are_part_of_the_settings(tiny_engine: Engine) -> None:
    making = object.__new__(Export)
    making.settings, making.benchmark, making.prompts = ExportSettings(1, batch=7), GENEVAL_BENCHMARK, []
    making.engine = Engine(tiny_engine.bundle, weights="int8")
    assert making._describe("")["settings"]["batch"] == 7
    assert replace(making.settings, batch=1).batch == 1
