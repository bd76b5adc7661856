"""The recipe of sizes: its program and its shell line run with a tiny model that says it was taught such forms."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_readme import RECIPES, execute, fenced, fenced_lines, run

from unimm.cli.compose import compose_config
from unimm.inference.engine import Engine


def test_its_lines_run(tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taught = tuple(compose_config("train", ["+experiment=sizes/aspect", "codes=x"]).prompt_format.sizes)
    prompt_format = replace(tiny_engine.bundle.prompt_format, sizes=taught)
    replace(tiny_engine.bundle, prompt_format=prompt_format).save("runs/sizes/model")
    (example,) = fenced(RECIPES / "sizes.md", "python")
    names: dict = {}
    execute(example, names)
    assert names["engine"].sizes[1:] == ["96x64", "64x96", "128x64", "64x128"]
    assert Image.open("wide.png").size == (96, 64) and Image.open("tall.png").size == (64, 96)
    (line,) = [line for line in fenced_lines(RECIPES / "sizes.md") if line.startswith("unimm generate")]
    run(line, "--device", "cpu")
    (drawing,) = Path("runs/wide").glob("*.png")
    assert Image.open(drawing).size == (96, 64)
    run(f"unimm generate --from {drawing} --out again.png --model runs/sizes/model --device cpu")
    assert Image.open("again.png").tobytes() == Image.open(drawing).tobytes()
