"""A bundle holds what a folder holds: whatever is in one is in the other, and an engine adds nothing to it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import unimm
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.data.template import PromptFormat
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.model import ImageTokenizer


@dataclass(frozen=True)
class ProjectionConfig:
    """The config of a head, as a contrastive loss has one."""

    width_in: int
    width_out: int = 4

    def build(self) -> "Projection":
        """The head."""
        return Projection(self)


class Projection(nn.Linear):
    """A head."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__(config.width_in, config.width_out)
        self.config = config


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_folder_gives_back_what_it_was_given(tiny_engine: Engine, tmp_path: Path) -> None:
    format_, drawing = PromptFormat(system_prompt="You see."), DrawingDefaults(guidance_scale=2.0, top_k=7)
    bundle = replace(tiny_engine.bundle, prompt_format=format_, drawing=drawing)
    assert bundle.save(tmp_path / "model") == []
    again = ModelBundle.load(tmp_path / "model")
    assert (again.prompt_format, again.drawing, dict(again.heads)) == (format_, drawing, {})
    assert same(again.model, bundle.model) and [*again.image_tokenizers] == [DEFAULT]
    assert torch.equal(again.image_tokenizer.quantize.codebook, bundle.image_tokenizer.quantize.codebook)
    assert again.tokenizer.tokenizer.get_vocab() == bundle.tokenizer.tokenizer.get_vocab()
    assert not (tmp_path / "model" / "further_modules.safetensors").exists()


def test_an_engine_saves_its_bundle_and_no_other_file(tiny_engine: Engine, tmp_path: Path) -> None:
    tiny_engine.save(tmp_path / "engine")
    tiny_engine.bundle.save(tmp_path / "bundle")
    for path in (tmp_path / "engine").iterdir():
        assert path.read_bytes() == (tmp_path / "bundle" / path.name).read_bytes(), path.name


def test_further_image_tokenizers_and_heads_travel_with_it(tiny_engine: Engine, tmp_path: Path) -> None:
    """Also inside a Janus, whose other files stay as they are."""
    torch.manual_seed(1)
    finer = ImageTokenizer(replace(tiny_engine.image_tokenizer.config, channel_multipliers=(1, 1, 1))).freeze()
    images = {**tiny_engine.bundle.image_tokenizers, "fine": finer}
    bundle = replace(tiny_engine.bundle, image_tokenizers=images, heads={"contrast": Projection(ProjectionConfig(64))})
    assert bundle.save(tmp_path / "model") == []
    tiny_engine.save(tmp_path / "plain")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    engine = unimm.load(tmp_path / "model", "cpu", "float32", allow_code=True)
    assert same(engine.bundle.heads["contrast"], bundle.heads["contrast"])
    assert same(engine.bundle.image_tokenizers["fine"], finer)
    assert engine.bundle.heads["contrast"].config == ProjectionConfig(64)
    engine.save(tmp_path / "again")
    names = [path.name for path in (tmp_path / "model").iterdir()]
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in names)
    half = unimm.load(tmp_path / "model", "cpu", "bfloat16", allow_code=True).bundle
    assert half.image_tokenizers["fine"].quantize.codebook.dtype == torch.float32
    assert next(half.heads["contrast"].parameters()).dtype == torch.bfloat16
    (tmp_path / "model" / "further_modules.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks further_modules.safetensors"):
        unimm.load(tmp_path / "model", "cpu", allow_code=True)


def test_code_that_a_folder_names_is_run_only_where_the_user_allows_it(
    tiny_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(tiny_engine.bundle, heads={"contrast": Projection(ProjectionConfig(64))}).save(tmp_path / "model")
    (tmp_path / "secret_package.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)

    def name(target: str) -> None:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        config["unimm"]["heads"]["contrast"]["_target_"] = target
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))

    name("secret_package.Head")
    with pytest.raises(ValueError, match=r"needs code of the package 'secret_package' .*--allow-code.*UNIMM_ALLOW_CODE=1"):
        unimm.load(tmp_path / "model", "cpu")
    monkeypatch.setenv("UNIMM_ALLOW_CODE", "1")
    with pytest.raises(SystemExit, match="it was run"):
        unimm.load(tmp_path / "model", "cpu")
    name("nowhere_package.heads.Head")
    with pytest.raises(ValueError, match="no module 'nowhere_package': install the package 'nowhere_package'"):
        unimm.load(tmp_path / "model", "cpu")
    name("json.Head")
    with pytest.raises(ValueError, match="json has no 'Head': install the version that has it"):
        unimm.load(tmp_path / "model", "cpu")
    monkeypatch.setenv("UNIMM_ALLOW_CODE", "yes")
    with pytest.raises(ValueError, match="UNIMM_ALLOW_CODE=yes is unknown"):
        unimm.load(tmp_path / "model", "cpu")


def test_a_head_that_could_not_be_built_again_is_not_written(tiny_engine: Engine, tmp_path: Path) -> None:
    bundle = replace(tiny_engine.bundle, heads={"plain": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="head 'plain' has no config"):
        bundle.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_bundle_names_the_image_tokenizer_that_it_draws_with(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="with the image tokenizer 'default', and this bundle has fine"):
        replace(tiny_engine.bundle, image_tokenizers={"fine": tiny_engine.image_tokenizer})
