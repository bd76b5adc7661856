"""Model folders: our own layout, shards, dtypes, hub cache, processor files, and every way in which a folder can be wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from janus_cases import Ids, assert_same, make_janus, our_answers, their_answers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast

from unimm.checkpoints.folder import load_model, save_model
from unimm.checkpoints.image_tokenizer_folder import fingerprint
from unimm.checkpoints.weight_files import DEMO, find_folder
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
    "<|User|>",
    "<|Assistant|>",
]


@pytest.fixture(scope="module")
def theirs():
    return make_janus(1)


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "janus"
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A folder to break."""
    return shutil.copytree(saved, tmp_path / "copy")


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["simvq", "fsq", "lfq", "grid"])
def test_what_is_no_janus_goes_into_our_own_layout(saved, tmp_path, kind):
    loaded = load_model(saved)
    config, tokenizer_config = loaded.model.config, loaded.image_tokenizer.config
    sizes = {"simvq": (20, 4, ()), "fsq": (36, 3, (4, 3, 3)), "lfq": (16, 4, ()), "grid": (20, 4, ())}
    size, dim, levels = sizes[kind]
    quantizer = replace(
        tokenizer_config.quantizer, kind="cosine" if kind == "grid" else kind, codebook_size=size, code_dim=dim, levels=levels
    )
    image_size = tokenizer_config.image_size * (2 if kind == "grid" else 1)
    image_tokenizer = ImageTokenizer(replace(tokenizer_config, quantizer=quantizer, image_size=image_size)).freeze()
    codes = replace(config.codes, codebook_size=size, code_dim=dim, num_codes=image_tokenizer.num_codes)
    model = UnifiedModel(replace(config, codes=codes)).eval()
    reasons = save_model(tmp_path / "own", model, image_tokenizer, Ids(), extra={"note": [1, "二"]})
    assert reasons
    assert reasons[0] in (tmp_path / "own" / "README.md").read_text()
    again = load_model(tmp_path / "own")
    assert (again.extra, again.image_tokenizer.config) == ({"note": [1, "二"]}, image_tokenizer.config)
    assert again.model.config.codes == codes
    for before, after in ((model, again.model), (image_tokenizer, again.image_tokenizer)):
        was, now = before.state_dict(), after.state_dict()
        assert was.keys() == now.keys()
        assert all(torch.equal(now[name], tensor) for name, tensor in was.items())
    pixels = torch.rand(2, 3, image_size, image_size) * 2 - 1
    drawn = image_tokenizer.encode(pixels)
    assert torch.equal(drawn, again.image_tokenizer.encode(pixels))
    # Mapped weights lie at other addresses, which may move the last bit of a sum.
    torch.testing.assert_close(image_tokenizer.decode(drawn), again.image_tokenizer.decode(drawn))


def test_shards_are_written_and_read(theirs, saved, tmp_path):
    loaded = load_model(saved)
    save_model(tmp_path / "shards", loaded.model, loaded.image_tokenizer, Ids(), max_shard_size=200_000)
    shards = list((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {path.stat().st_mode for path in shards} == {(tmp_path / "shards" / "config.json").stat().st_mode}
    again = load_model(tmp_path / "shards")
    assert_same(our_answers(again.model, again.image_tokenizer, theirs.config), their_answers(theirs))


def test_a_model_can_be_saved_over_the_folder_that_it_was_mapped_from(theirs, copy):
    loaded = load_model(copy)
    save_model(copy, loaded.model, loaded.image_tokenizer, Ids())
    for again in (loaded, load_model(copy)):
        assert_same(our_answers(again.model, again.image_tokenizer, theirs.config), their_answers(theirs))


def test_training_a_loaded_model_leaves_the_file_alone(copy):
    before = (copy / "model.safetensors").read_bytes()
    loaded = load_model(copy)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            assert parameter.requires_grad
            parameter.mul_(2)
    assert (copy / "model.safetensors").read_bytes() == before
    assert not any(parameter.requires_grad for parameter in loaded.image_tokenizer.parameters())


def test_half_precision_keeps_buffers_and_quantizer_whole(saved, tmp_path):
    loaded = load_model(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in loaded.image_tokenizer.parameters()} == {torch.bfloat16}
    assert loaded.image_tokenizer.quantize.codebook.dtype == torch.float32
    full = dict(load_model(saved).model.named_buffers())
    assert "trunk.rotary_emb.inv_freq" in full
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(buffer, full[name])
    save_model(tmp_path / "half", loaded.model, loaded.image_tokenizer, Ids())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_model(tmp_path / "half")
    assert next(again.model.parameters()).dtype == torch.bfloat16


def test_codes_stay_those_of_the_tokenizer_however_often_it_is_saved(saved, tmp_path):
    loaded = load_model(saved)
    first = fingerprint(loaded.image_tokenizer)
    for time in range(5):
        save_model(tmp_path / str(time), loaded.model, loaded.image_tokenizer, Ids())
        loaded = load_model(tmp_path / str(time))
        assert fingerprint(loaded.image_tokenizer) == first


def test_a_head_in_the_file_overrules_a_config_that_says_tied(theirs, copy):
    change_config(copy, tie_word_embeddings=True)
    loaded = load_model(copy)
    assert loaded.model.text.head.weight is not loaded.model.text.embedding.weight
    assert not loaded.model.config.trunk_config().tie_word_embeddings
    assert_same(our_answers(loaded.model, loaded.image_tokenizer, theirs.config), their_answers(theirs))
    change_weights(
        copy, lambda tensors: tensors.update({"lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()})
    )
    loaded = load_model(copy)
    assert loaded.model.text.head.weight is loaded.model.text.embedding.weight


def test_the_processor_writes_our_prompts(saved, tmp_path):
    def save_tokenizer(folder):
        backend = Tokenizer(
            models.WordLevel({token: i for i, token in enumerate([*SPECIAL, "What", "Red"])}, unk_token="<unk>")
        )
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        named = {"image_token": SPECIAL[4], "boi_token": SPECIAL[5], "eoi_token": SPECIAL[6]}
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=named
        ).save_pretrained(folder)

    loaded = load_model(saved)
    save_model(tmp_path / "m", loaded.model, loaded.image_tokenizer, Ids(), save_tokenizer=save_tokenizer)
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    assert type(processor).__name__ == "JanusProcessor"
    text = {"type": "text", "text": "What?"}
    turns = [
        {"role": "user", "content": [{"type": "image"}, text]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": "Why?"},
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>: Red.</s><|User|>: Why?\n\n<|Assistant|>:"
    )
    vision = loaded.model.config.vision
    pixels = torch.zeros(30, 50, 3, dtype=torch.uint8).numpy()
    inputs = processor(text="<|User|>: <image_placeholder>\nWhat", images=[pixels])
    assert (inputs["input_ids"] == SPECIAL.index("<image_placeholder>")).sum() == vision.num_patches
    assert inputs["pixel_values"].shape == (1, 3, vision.image_size, vision.image_size)
    assert inputs["pixel_values"].min() == -1
    shutil.rmtree(tmp_path / "m")
    old = {"prompt_format": {"user": "User", "assistant": "Assistant", "system_prompt": ""}}
    save_model(tmp_path / "m", loaded.model, loaded.image_tokenizer, Ids(), extra=old, save_tokenizer=save_tokenizer)
    processor = AutoProcessor.from_pretrained(tmp_path / "m")
    assert processor.apply_chat_template([{"role": "user", "content": [text]}], add_generation_prompt=True) == (
        "User: What?\n\nAssistant:"
    )


def test_a_hub_id_is_found_in_the_cache_offline(saved, tmp_path, monkeypatch):
    cache = tmp_path / "models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc123")
    shutil.copytree(saved, cache / "snapshots" / "abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("someone/tiny").folder == cache / "snapshots" / "abc123"
    with pytest.raises(ValueError, match="someone/other is neither a folder nor a model"):
        load_model("someone/other")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_shard(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')


def renamed(folder):
    change_weights(folder, lambda tensors: tensors.update({"model.surprise": tensors.pop("model.aligner.fc1.bias")}))


def misshaped(folder):
    change_weights(folder, lambda tensors: tensors.update({"model.aligner.fc1.bias": torch.zeros(3)}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "pickled weights only.*--from-pickle"),
        (truncated, "damaged or cut short"),
        (no_shard, "lacks model-00001-of-00001.safetensors"),
        (renamed, r"1 missing \(model.aligner.fc1.bias\), 1 unknown \(model.surprise\)"),
        (misshaped, r"1 of another shape \(model.aligner.fc1.bias \(3,\) instead of"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: change_config(folder, model_type="llava"), "model of type 'llava'"),
        (lambda folder: change_config(folder, unimm={"version": 99}), "newer unimm"),
    ],
)
def test_a_broken_folder_is_refused_in_one_sentence(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_demo_is_a_name_wherever_a_model_is_named(tmp_path, monkeypatch):
    """And a folder of one's own with that name is a path."""
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert find_folder("demo") == DEMO and (DEMO / "config.json").is_file()
    assert find_folder("./demo") == find_folder(Path("demo")) == Path("demo")


def test_names_that_are_no_model(saved, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file"):
        load_model(saved / "config.json")


def test_saving_never_replaces_what_is_no_model(saved, tmp_path):
    loaded = load_model(saved)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not a model folder"):
        save_model(tmp_path, loaded.model, loaded.image_tokenizer, Ids())
    assert (tmp_path / "precious.txt").exists()


def test_a_save_that_fails_leaves_the_old_folder(copy):
    def fail(folder):
        raise KeyboardInterrupt

    loaded = load_model(copy)
    before = (copy / "config.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        save_model(copy, loaded.model, loaded.image_tokenizer, Ids(), save_tokenizer=fail)
    assert (copy / "config.json").read_text() == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_tokenizer_of_another_size_is_refused(saved, tmp_path):
    loaded = load_model(saved)
    loaded.model.config = replace(loaded.model.config, codes=replace(loaded.model.config.codes, num_codes=1))
    with pytest.raises(ValueError, match="the model was trained with"):
        save_model(tmp_path / "m", loaded.model, loaded.image_tokenizer, Ids())


def test_the_model_of_a_training_that_has_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run/model would be a hub id: nothing is asked of the hub."""
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    run.mkdir()
    (run / "metrics.jsonl").touch()
    told = "run is a training that is not finished: the same line goes on with it, and then writes run/model"
    for name in ("run/model", "run"):
        with pytest.raises(ValueError, match=rf"^{told}\.$"):
            load_model(name)
    with pytest.raises(ValueError, match="run is a training without a validation yet, so it has no best model"):
        load_model("run/best")
    (run / "best").mkdir()
    (run / "best/config.json").touch()
    with pytest.raises(ValueError, match=rf"^{told} \(its best model so far is run/best\)\.$"):
        load_model("run/model")
