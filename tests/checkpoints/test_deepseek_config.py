"""DeepSeek's own repositories open here: their config, their names of weights, their pickles where asked for."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_cases import PRO_1B, assert_same, draw_config, make_janus, our_answers, pro_7b, their_answers
from safetensors.torch import save_file
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration

from unimm.checkpoints import deepseek_config, janus_config
from unimm.checkpoints.folder import load_model
from unimm.checkpoints.weight_names import CODEBOOK, DEEPSEEK
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel

SEEDS = (0, 1, 2, 4)  # llama trunks; 3 is qwen3, which DeepSeek's layout does not have


def as_deepseek_writes(config: JanusConfig, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The config that DeepSeek would write of a tiny Janus; its towers and tokenizers have names, so these get some."""
    vision, vq, text = config.vision_config, config.vq_config, config.text_config
    names = ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
    patch.setitem(deepseek_config.TOWERS, "siglip_tiny", {name: getattr(vision, name) for name in names})
    names = ("num_embeddings", "embed_dim", "base_channels", "channel_multiplier", "num_res_blocks", "latent_channels")
    patch.setitem(deepseek_config.IMAGE_TOKENIZERS, "VQ-tiny", {name: getattr(vq, name) for name in names})
    width = text.hidden_size
    aligner = {"projector_type": "mlp_gelu", "n_embed": width}
    llama = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    llama = (*llama, "head_dim", "max_position_embeddings", "tie_word_embeddings")
    return {
        "model_type": "multi_modality",
        "vision_config": {"params": {"model_name": "siglip_tiny", "image_size": vision.image_size, "select_layer": -1}},
        "aligner_config": {"params": {**aligner, "depth": vision.depth}},
        "gen_vision_config": {"cls": "VQ-tiny", "params": {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim}},
        "gen_aligner_config": {"params": {**aligner, "depth": vq.num_hidden_layers}},
        "gen_head_config": {"params": {"n_embed": width, "image_token_embed": width}},
        "language_config": {"model_type": "llama", **{name: getattr(text, name) for name in llama}},
    }


def deepseek_weights(theirs: JanusForConditionalGeneration) -> dict[str, Tensor]:
    """transformers' weights under the names of DeepSeek's modules, with what else lies in their files."""
    weights = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    if theirs.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    renamed = {}
    for name, tensor in weights.items():
        part, _, rest = name.removeprefix("model.").partition(".")
        rename: dict[str, Callable[[str], str]] = {
            "language_model": lambda rest: f"language_model.model.{rest}",
            "lm_head": lambda rest: f"language_model.lm_head.{rest}",
            "vision_model": _vision_name,
            "aligner": lambda rest: f"aligner.layers.{_layer(rest)}",
            "generation_aligner": lambda rest: f"gen_aligner.layers.{_layer(rest)}",
            "generation_embeddings": lambda rest: f"gen_embed.{rest}",
            "generation_head": lambda rest: f"gen_head.{rest.replace('proj_out', 'output_mlp_projector')}",
            "vqmodel": _vq_name,
        }
        renamed[rename[part](rest)] = tensor
    for name in [name for name in renamed if ".attn.q_proj" in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        renamed[name.replace("q_proj", "qkv")] = torch.cat(parts)
    position = "vision_model.vision_tower.pos_embed"
    renamed[position] = renamed[position][None]
    unused = ("vision_model.vision_tower.attn_pool.latent", "vision_model.vision_tower.attn_pool.kv.weight")
    unused = (*unused, "gen_vision_model.quantize.codebook_used", "language_model.model.layers.0.self_attn.rotary_emb.inv_freq")
    return renamed | {name: torch.zeros(3) for name in unused}


def _vision_name(rest: str) -> str:
    for theirs, ours in (
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("embeddings.position_embedding.weight", "pos_embed"),
        ("post_layernorm", "norm"),
        ("encoder.layers", "blocks"),
        ("self_attn.projection_layer", "attn.proj"),
        ("self_attn", "attn"),
        ("layer_norm", "norm"),
    ):
        rest = rest.replace(theirs, ours)
    return f"vision_model.vision_tower.{rest}"


def _layer(rest: str) -> str:
    if rest.startswith("fc1."):
        return rest.replace("fc1", "0")
    _, number, kind = rest.split(".")
    return f"{2 * (int(number) + 1)}.{kind}"


def _vq_name(rest: str) -> str:
    for theirs, ours in ((".down.", ".conv_blocks."), (".up.", ".conv_blocks."), (".block.", ".res.")):
        rest = rest.replace(theirs, ours)
    for theirs, ours in (("mid.block_1", "mid.0"), ("mid.attn_1", "mid.1"), ("mid.block_2", "mid.2")):
        rest = rest.replace(theirs, ours)
    return f"gen_vision_model.{rest}"


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_gives_the_same_numbers(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_janus(seed)
    write_config(tmp_path, as_deepseek_writes(theirs.config, monkeypatch))
    save_file(deepseek_weights(theirs), tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert_same(our_answers(loaded.model, loaded.image_tokenizer, theirs.config), their_answers(theirs))
    tied = loaded.model.text.head.weight is loaded.model.text.embedding.weight
    assert tied == theirs.config.tie_word_embeddings


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A folder with one .bin file, as Janus-Pro-1B's."""
    theirs = make_janus(1)
    folder = tmp_path / "pickled"
    write_config(folder, as_deepseek_writes(theirs.config, monkeypatch))
    torch.save(deepseek_weights(theirs), folder / "pytorch_model.bin")
    return theirs, folder


def test_pickles_are_read_only_where_asked_for(pickled: tuple) -> None:
    theirs, folder = pickled
    with pytest.raises(
        ValueError, match="pickled weights only, which load never opens: run `unimm convert SOURCE OUT --from-p"
    ):
        load_model(folder)
    loaded = load_model(folder, from_pickle=True)
    assert_same(our_answers(loaded.model, loaded.image_tokenizer, theirs.config), their_answers(theirs))


def test_pickled_shards_are_found_by_their_index(pickled: tuple) -> None:
    theirs, folder = pickled
    weights = deepseek_weights(theirs)
    (folder / "pytorch_model.bin").unlink()
    shards = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(weights)}
    for shard in set(shards.values()):
        torch.save({name: tensor for name, tensor in weights.items() if shards[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    loaded = load_model(folder, from_pickle=True)
    assert_same(our_answers(loaded.model, loaded.image_tokenizer, theirs.config), their_answers(theirs))
    (folder / next(iter(shards.values()))).unlink()
    with pytest.raises(ValueError, match="lacks pytorch_model-0000"):
        load_model(folder, from_pickle=True)


class Evil:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "gotcha"))


def test_a_pickle_that_is_a_program_is_not_run(pickled: tuple, tmp_path: Path) -> None:
    _, folder = pickled
    torch.save({"weight": Evil(tmp_path / "gotcha")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors, which is never run") as caught:
        load_model(folder, from_pickle=True)
    assert not (tmp_path / "gotcha").exists() and "\n" not in str(caught.value)
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Evil(tmp_path / "gotcha"), file)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_model(folder, from_pickle=True)
    assert not (tmp_path / "gotcha").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "damaged or cut short"),
        (lambda path: torch.save([1, 2], path), "holds no dictionary of tensors"),
    ],
)
def test_a_broken_pickle_is_refused_in_one_sentence(content: Callable[[Path], Any], message: str, pickled: tuple) -> None:
    _, folder = pickled
    content(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder, from_pickle=True)
    assert "\n" not in str(caught.value)


def test_nothing_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_janus(1)
    write_config(tmp_path, as_deepseek_writes(theirs.config, monkeypatch))
    weights = deepseek_weights(theirs)
    del weights["gen_embed.weight"]
    weights["aligner.layers.0.bias"] = torch.zeros(3)
    save_file(weights | {"gen_vision_model.surprise": torch.zeros(1)}, tmp_path / "model.safetensors")
    missing, unknown = r"1 missing \(gen_embed.weight\)", r"1 unknown \(gen_vision_model.surprise\)"
    with pytest.raises(ValueError, match=f"{missing}, {unknown}, 1 of another shape .aligner.layers.0.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize(("config", "width", "layers"), [(PRO_1B, 2048, 24), (pro_7b(), 4096, 30)])
def test_the_true_sizes(config: dict[str, Any], width: int, layers: int) -> None:
    """As many parameters, name for name, as transformers' model of the same sizes."""
    told = JanusConfig(**deepseek_config.as_janus_config(config))
    assert (told.text_config.hidden_size, told.text_config.num_hidden_layers) == (width, layers)
    assert told.text_config.max_position_embeddings == 16384
    with torch.device("meta"):
        theirs = JanusForConditionalGeneration(told)
        unified, tokenizer = janus_config.from_janus_config(deepseek_config.as_janus_config(config))
        ours = dict(UnifiedModel(unified).state_dict())
        ours |= {f"image_tokenizer.{k}": v for k, v in ImageTokenizer(tokenizer).state_dict().items() if "quantize." not in k}
    ours[CODEBOOK] = torch.empty(16384, 8, device="meta")
    assert sum(tensor.numel() for tensor in ours.values()) == sum(p.numel() for p in theirs.parameters())
    named = {k: v for name, tensor in ours.items() for k, v in DEEPSEEK.entries(name, tuple(tensor.shape)).items()}
    expected = {name: tuple(t.shape) for name, t in deepseek_weights(theirs).items() if not DEEPSEEK.unused.fullmatch(name)}
    assert named == expected


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vision_config", {"model_name": "sam_b"}, "unknown tower 'sam_b'"),
        ("aligner_config", {"projector_type": "low_high_hybrid_split_mlp_gelu"}, "low_high_hybrid"),
        ("gen_aligner_config", {"n_embed": 7}, "n_embed is 7"),
        ("gen_vision_config", {"image_token_size": 100}, "image_token_size is 100"),
        ("gen_head_config", {"image_token_embed": 100}, "image_token_embed_dim is 100"),
    ],
)
def test_a_config_that_we_cannot_read_is_refused(section: str, change: dict, message: str, tmp_path: Path) -> None:
    config = json.loads(json.dumps(PRO_1B))
    config[section]["params"] |= change
    write_config(tmp_path, config)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
    del config[section]
    write_config(tmp_path, config)
    with pytest.raises(ValueError, match=f"lacks {section}"):
        load_model(tmp_path)


def test_a_tower_that_keeps_fewer_layers() -> None:
    config = json.loads(json.dumps(PRO_1B))
    for keep, layers in ((-2, 23), (-1, 24), (5, 5)):
        config["vision_config"]["params"]["select_layer"] = keep
        assert deepseek_config.as_janus_config(config)["vision_config"]["num_hidden_layers"] == layers


def test_an_odd_seed_is_what_this_file_says() -> None:
    assert all(draw_config(seed).text_config.model_type == "llama" for seed in SEEDS)
