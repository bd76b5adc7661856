"""`unimm convert`: whatever opens here is written so that it opens everywhere, from the shell."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from janus_cases import draw, make_tokenizer, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoProcessor, JanusForConditionalGeneration
from typer.testing import CliRunner

import unimm
from unimm.checkpoints.bundle import DEFAULT
from unimm.cli.app import app
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel


def call(*words: object):
    return CliRunner().invoke(app, ["convert", *(str(word) for word in words)])


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A Janus of transformers, as a repository that has nothing but a .bin file."""
    theirs, _ = write_checkpoint(tmp_path / "pickled", 1)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    return tmp_path / "pickled"


def test_pickles_become_safetensors_on_request(pickled: Path, tmp_path: Path) -> None:
    refused = call(pickled, tmp_path / "out")
    assert refused.exit_code == 2 and "--from-pickle" in refused.stderr and not (tmp_path / "out").exists()
    result = call(pickled, tmp_path / "out", "--from-pickle", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "opens in transformers as JanusForConditionalGeneration" in result.stdout
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} >= {torch.bfloat16}
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    prompt = processor.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    inputs = processor(text=[prompt], generation_mode="image", return_tensors="pt")
    ours = unimm.load(tmp_path / "out", device="cpu", dtype="float32").generate_codes("a", temperature=0.0, guidance_scale=5.0)
    assert torch.equal(draw(theirs, inputs), ours)


def test_a_deepseek_tokenizer_becomes_one_that_janus_processor_takes(tmp_path: Path, pickled: Path) -> None:
    """DeepSeek's tokenizer files name neither image tokens nor a begin-of-sentence that is added."""
    tokenizer = make_tokenizer(1)
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    (pickled / "tokenizer.json").write_text(json.dumps(backend))
    (pickled / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}))
    assert call(pickled, tmp_path / "out", "--from-pickle").exit_code == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = processor.apply_chat_template([{"role": "user", "content": "a red cross"}], add_generation_prompt=True)
    inputs = processor(text=[prompt], generation_mode="image", return_tensors="pt")["input_ids"][0].tolist()
    engine = unimm.load(tmp_path / "out")
    ours = engine.template.draw("a red cross", num_codes=engine.image_tokenizer.num_codes)
    assert inputs == [i for segment in ours.given.segments for i in segment.ids]
    assert processor.tokenizer.pad_token_id == engine.tokenizer.special.pad


def test_what_is_no_janus_is_written_and_named(tiny_engine: Engine, tmp_path: Path) -> None:
    finer = ImageTokenizer(replace(tiny_engine.image_tokenizer.config, channel_multipliers=(1, 1, 1))).freeze()
    config = tiny_engine.model.config
    model = UnifiedModel(replace(config, codes=replace(config.codes, num_codes=finer.num_codes))).eval()
    engine = Engine(replace(tiny_engine.bundle, model=model, image_tokenizers={DEFAULT: finer}))
    assert engine.save(tmp_path / "model") == ["it looks at 2x2 patches and draws 4x4 codes, a Janus has one grid for both"]
    result = call(tmp_path / "model", tmp_path / "out")
    assert result.exit_code == 0
    assert "transformers cannot open: it looks at 2x2 patches and draws 4x4 codes" in result.stdout
    assert torch.equal(unimm.load(tmp_path / "out", device="cpu").generate_codes("a"), engine.generate_codes("a"))


def test_what_is_no_model_is_never_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("love")
    result = call(tiny_folder, tmp_path / "letters")
    assert result.exit_code == 2 and "is not a model folder" in result.stderr
    result = call(tmp_path / "nowhere", tmp_path / "out")
    assert result.exit_code == 2 and "There is no folder" in result.stderr and not (tmp_path / "out").exists()


def test_a_model_is_uploaded_whole(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, list[str]] = {}

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok and private is True
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr("unimm.checkpoints.hub.HfApi", Api)
    result = call(tiny_folder, tmp_path / "out", "--push-to-hub", "someone/tiny", "--private")
    assert result.exit_code == 0 and "https://huggingface.co/someone/tiny" in result.stdout
    needed = {"README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"}
    needed |= {"preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= set(uploaded["someone/tiny"])
    assert unimm.load(tiny_folder).push_to_hub("someone/else", private=True) == "https://huggingface.co/someone/else"
    assert uploaded["someone/else"] == uploaded["someone/tiny"]


def test_a_hub_that_refuses_is_one_sentence(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise HfHubHTTPError(
            "401 Client Error\nlong story", response=SimpleNamespace(headers={}, request=None, status_code=401)
        )

    monkeypatch.setattr("unimm.checkpoints.hub.HfApi.create_repo", refuse)
    result = call(tiny_folder, tmp_path / "out", "--push-to-hub", "someone/tiny")
    assert result.exit_code == 2 and "hf auth login" in result.stderr and result.stderr.count("\n") == 1


def test_drawing_defaults_and_notes_travel(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("## Scores\n\n0.5 of everything")
    words = ("--guidance-scale", 2.5, "--temperature", 0.6, "--notes", tmp_path / "notes.md")
    result = call(tiny_folder, tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    drawing = unimm.load(tmp_path / "out", device="cpu").drawing
    assert (drawing.guidance_scale, drawing.temperature) == (2.5, 0.6)
    assert "0.5 of everything" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    refused = call(tiny_folder, tmp_path / "other", "--notes", tmp_path / "none.md")
    assert refused.exit_code == 2 and "none.md is no file" in refused.stderr and not (tmp_path / "other").exists()
