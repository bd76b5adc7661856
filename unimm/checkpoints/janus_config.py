"""Sizes of our models as `transformers` knows them: UnifiedConfig + ImageTokenizerConfig <-> JanusConfig as JSON.

Source: transformers/models/janus. The names of its weights are in `weight_names`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import CONFIG_MAPPING, JanusConfig, PreTrainedConfig

from unimm.checkpoints.config_json import from_json, to_json
from unimm.checkpoints.weight_names import MAX_DEPTH
from unimm.models.image_tokenizer.model import ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig
from unimm.models.llama import is_llama_shaped
from unimm.models.unified import CodesConfig, UnifiedConfig
from unimm.models.vision.projectors import ProjectorConfig
from unimm.models.vision.tower import VisionConfig

MODEL_TYPE = "janus"


class SpecialIds(Protocol):
    """The ids of special tokens that a Janus config names."""

    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def image_placeholder(self) -> int: ...
    @property
    def begin_of_image(self) -> int: ...


def why_not_janus(config: UnifiedConfig, image_tokenizer: ImageTokenizerConfig) -> list[str]:
    """Which parts of a model `transformers`' Janus cannot express; empty when it can."""
    reasons = []
    for name, port in config.ports.items():
        reasons.append(f"it has a port '{name}' ({type(port).__name__}), a Janus has text, pixels and codes")
    if config.codes is None:
        return [*reasons, "it draws nothing, a Janus has codes"]
    depths = {"code aligner": config.codes.aligner_depth}
    projector = config.projector
    if isinstance(projector, ProjectorConfig) and projector.kind in ("mlp", "linear"):  # one layer is a depth, too
        depths["projector"] = projector.depth
    else:
        own = projector.kind if isinstance(projector, ProjectorConfig) else type(projector).__name__
        reasons.append(f"the projector is '{own}', a Janus has 'mlp'")
    for name, depth in depths.items():
        if not 1 <= depth <= MAX_DEPTH:
            reasons.append(f"the {name} has {depth} layers, our table of names goes from 1 to {MAX_DEPTH}")
    quantizer = image_tokenizer.quantizer
    kind = quantizer.kind if isinstance(quantizer, QuantizerConfig) else type(quantizer).__name__
    if kind != "cosine":
        reasons.append(f"the quantizer is '{kind}', a Janus has a plain codebook ('cosine')")
    if quantizer.code_dim != config.codes.code_dim:
        wide = (config.codes.code_dim, quantizer.code_dim)
        reasons.append(f"code embeddings are {wide[0]} wide and the codebook {wide[1]}, a Janus has one width for both")
    seen, drawn = config.vision.image_size // config.vision.patch_size, image_tokenizer.grid_size
    if seen != drawn:
        reasons.append(f"it looks at {seen}x{seen} patches and draws {drawn}x{drawn} codes, a Janus has one grid for both")
    trunk_config = config.trunk_config()
    if not (is_llama_shaped(trunk_config) or _has_embed_tokens(trunk_config)):
        reasons.append(f"a '{trunk_config.model_type}' trunk does not call its token embedding `embed_tokens`")
    return reasons


def _has_embed_tokens(trunk_config: PreTrainedConfig) -> bool:
    from transformers import AutoModel

    with torch.device("meta"):
        return getattr(AutoModel.from_config(trunk_config), "embed_tokens", None) is not None


def to_janus_config(
    config: UnifiedConfig, image_tokenizer: ImageTokenizerConfig, special: SpecialIds, dtype: torch.dtype
) -> dict[str, Any]:
    """The `JanusConfig` as JSON-able values, every size and tie written (defaults have changed between versions).

    How the quantizer is trained is no part of a Janus: it goes under `unimm`, a key that `transformers` keeps and ignores.
    ValueError: the model is not expressible (`why_not_janus`).
    """
    if reasons := why_not_janus(config, image_tokenizer):
        raise ValueError(f"This model cannot be written as a Janus: {'; '.join(reasons)}.")
    trunk_config = config.trunk_config()
    width, tied = trunk_config.hidden_size, bool(trunk_config.tie_word_embeddings)
    ids = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "dtype": str(dtype).removeprefix("torch."),
        "image_token_id": special.image_placeholder,
        "tie_word_embeddings": tied,
        "text_config": {**trunk_dict(config), **ids, "tie_word_embeddings": tied},
        "vision_config": _vision_json(config, width),
        "vq_config": _vq_json(config, image_tokenizer, width),
        "unimm": {"quantizer": to_json(image_tokenizer.quantizer)},
    }


def from_janus_config(janus: Mapping[str, Any]) -> tuple[UnifiedConfig, ImageTokenizerConfig]:
    """Our configs of a `JanusConfig` as JSON. Sizes that it does not write take `transformers`' defaults.

    ValueError: a size is senseless, or a part is one that we do not have (named).
    """
    text_type = (janus.get("text_config") or {}).get("model_type", "llama")
    if text_type not in CONFIG_MAPPING:
        raise ValueError(f"text_config.model_type '{text_type}' is unknown to transformers: update it, or correct config.json.")
    try:
        full = JanusConfig(**{key: value for key, value in janus.items() if key != "unimm"}).to_dict()
        vision, vq, text = full["vision_config"], full["vq_config"], full["text_config"]
        grid_size = vision["image_size"] // vision["patch_size"]
    except Exception as error:  # transformers' own checks raise half a dozen kinds
        reason = str(error).strip().replace("\n", " ")
        raise ValueError(f"config.json is not a usable Janus config: {reason}") from error
    if problems := _foreign_parts(vision, vq, text["hidden_size"]):
        raise ValueError(f"This Janus has parts that unimm lacks: {'; '.join(problems)}.")
    config = UnifiedConfig(
        # The top level decides whether the head is tied, as in transformers; the text config's own value may differ.
        trunk=clean_trunk(text) | {"tie_word_embeddings": full["tie_word_embeddings"]},
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            num_layers=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            mlp_ratio=vision["mlp_ratio"],
        ),
        codes=CodesConfig(grid_size**2, vq["num_embeddings"], vq["embed_dim"], vq["num_hidden_layers"]),
        projector=ProjectorConfig("mlp", vision["depth"]),
    )
    return config, _image_tokenizer_config(vq, grid_size, (janus.get("unimm") or {}).get("quantizer", {}))


def _image_tokenizer_config(vq: Mapping[str, Any], grid_size: int, learning: Mapping[str, Any]) -> ImageTokenizerConfig:
    """learning: the quantizer's training settings, where we wrote them."""
    sizes = {"kind": "cosine", "codebook_size": vq["num_embeddings"], "code_dim": vq["embed_dim"]}
    levels = tuple(vq["channel_multiplier"])
    return ImageTokenizerConfig(
        image_size=grid_size * 2 ** (len(levels) - 1),
        base_channels=vq["base_channels"],
        channel_multipliers=levels,
        num_res_blocks=vq["num_res_blocks"],
        latent_channels=vq["latent_channels"],
        dropout=vq["dropout"],
        quantizer=from_json(QuantizerConfig, {**learning, **sizes}, "config.json, unimm.quantizer"),
    )


def trunk_dict(config: UnifiedConfig) -> dict[str, Any]:
    """The trunk's config with every default written out."""
    return clean_trunk(config.trunk_config().to_dict())


def clean_trunk(text: Mapping[str, Any]) -> dict[str, Any]:
    """A text config without what is no size: where it came from, and a dtype that would overrule the one asked for."""
    noise = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
    return {key: value for key, value in text.items() if key not in noise}


def _vision_json(config: UnifiedConfig, width: int) -> dict[str, Any]:
    vision, projector = config.vision, config.projector
    assert isinstance(projector, ProjectorConfig), "no other is a Janus"
    return {
        "model_type": "janus_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_image_tokens": vision.num_patches,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "mlp_ratio": vision.mlp_ratio,
        "projection_dim": width,
        "depth": projector.depth,
        **_FIXED["vision_config"],
    }


def _vq_json(config: UnifiedConfig, image_tokenizer: ImageTokenizerConfig, width: int) -> dict[str, Any]:
    assert config.codes is not None, "a Janus draws"
    return {
        "model_type": "janus_vqgan",
        "num_embeddings": image_tokenizer.quantizer.codebook_size,
        "embed_dim": image_tokenizer.quantizer.code_dim,
        "num_patches": image_tokenizer.grid_size,
        "base_channels": image_tokenizer.base_channels,
        "channel_multiplier": list(image_tokenizer.channel_multipliers),
        "num_res_blocks": image_tokenizer.num_res_blocks,
        "latent_channels": image_tokenizer.latent_channels,
        "dropout": image_tokenizer.dropout,
        "num_hidden_layers": config.codes.aligner_depth,
        "projection_dim": width,
        "image_token_embed_dim": width,
        **_FIXED["vq_config"],
    }


_FIXED: dict[str, dict[str, Any]] = {
    "vision_config": {
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_bias": True,
        "use_qk_norm": False,
    },
    "vq_config": {"in_channels": 3, "out_channels": 3, "double_latent": False, "hidden_act": "gelu"},
}
"""What a JanusConfig leaves open and every released Janus agrees on: ours has these values."""


def _foreign_parts(vision: dict[str, Any], vq: dict[str, Any], width: int) -> list[str]:
    expected = {name: dict(fixed) for name, fixed in _FIXED.items()}
    expected["vision_config"] |= {"projection_dim": width}
    expected["vq_config"] |= {"projection_dim": width, "image_token_embed_dim": width}
    given = {"vision_config": vision, "vq_config": vq}
    problems = []
    for section, parts in expected.items():
        for key, value in parts.items():
            if given[section][key] != value:
                problems.append(f"{section}.{key} is {given[section][key]!r} (it must be {value!r})")
    for name, depth in (("vision_config.depth", vision["depth"]), ("vq_config.num_hidden_layers", vq["num_hidden_layers"])):
        if not 1 <= depth <= MAX_DEPTH:
            problems.append(f"{name} is {depth} (it must be 1 to {MAX_DEPTH})")
    return problems
