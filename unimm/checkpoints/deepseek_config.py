"""Sizes of DeepSeek's own Janus repositories (`model_type: multi_modality`), as a JanusConfig of `transformers`.

Their config.json names classes and gives each its keywords: towers and the image tokenizer have fixed sizes by name, the trunk
is a Llama whose unwritten sizes are LlamaConfig's defaults. Source: deepseek-ai/Janus, janus/models. The names of the weights
are in `weight_names`.
"""

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "multi_modality"

TOWERS = {
    "siglip_large_patch16_384": {
        "patch_size": 16,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_ratio": 4.0,
    },
    "siglip_so400m_patch14_384": {
        "patch_size": 14,
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "mlp_ratio": 3.7362,
    },
}
"""Vision towers by name."""

IMAGE_TOKENIZERS = {
    "VQ-16": {
        "num_embeddings": 16384,
        "embed_dim": 8,
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "latent_channels": 256,
    }
}
"""Image tokenizers by name."""


def as_janus_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `JanusConfig`, as JSON-able values, of DeepSeek's config.json.

    ValueError: a part is missing, or one that a Janus of `transformers` does not have (named).
    """
    trunk = {key: value for key, value in (config.get("language_config") or {}).items() if not key.startswith("_")}
    trunk = {"model_type": "llama", **trunk}
    if trunk["model_type"] != "llama":
        raise ValueError(f"config.json, language_config: DeepSeek's Janus has a llama trunk, not '{trunk['model_type']}'.")
    from transformers import LlamaConfig  # its module loads torchvision, where that is installed

    # Written out: JanusConfig ties head and embedding by default, LlamaConfig does not.
    full = LlamaConfig(**trunk)
    tied = bool(full.tie_word_embeddings)
    width = full.hidden_size
    vision, depth = _vision(config), _aligner(config, "aligner_config", width)
    tokenizer, tokenizer_depth = _image_tokenizer(config), _aligner(config, "gen_aligner_config", width)
    head = _params(config, "gen_head_config")
    return {
        "model_type": "janus",
        "tie_word_embeddings": tied,
        "text_config": {**trunk, "hidden_size": width, "tie_word_embeddings": tied},
        "vision_config": {**vision, "projection_dim": width, "depth": depth},
        "vq_config": {
            **tokenizer,
            "num_hidden_layers": tokenizer_depth,
            "projection_dim": width,
            "image_token_embed_dim": head.get("image_token_embed", width),
        },
    }


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    # What is not written takes the defaults of DeepSeek's CLIPVisionTower.
    params = {"model_name": "siglip_large_patch16_384", "image_size": 336, "select_layer": -2}
    params |= _params(config, "vision_config")
    name = params["model_name"]
    if name not in TOWERS:
        raise ValueError(f"config.json, vision_config: unknown tower '{name}', unimm knows {', '.join(TOWERS)}.")
    tower = dict(TOWERS[name])
    # DeepSeek counts the layers to keep from the end (-1: all) or from the front.
    keep, layers = params["select_layer"], int(tower["num_hidden_layers"])
    tower["num_hidden_layers"] = min(layers, layers + keep + 1 if keep <= 0 else keep)
    image_size = params["image_size"]
    return {**tower, "image_size": image_size, "num_image_tokens": (image_size // int(tower["patch_size"])) ** 2}


def _image_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    name = (config.get("gen_vision_config") or {}).get("cls", "VQ-16")
    if name not in IMAGE_TOKENIZERS:
        known = ", ".join(IMAGE_TOKENIZERS)
        raise ValueError(f"config.json, gen_vision_config: unknown image tokenizer '{name}', unimm knows {known}.")
    sizes = IMAGE_TOKENIZERS[name]
    params = _params(config, "gen_vision_config")
    for theirs, ours in (("image_token_size", "num_embeddings"), ("n_embed", "embed_dim")):
        if params.get(theirs, sizes[ours]) != sizes[ours]:
            raise ValueError(f"config.json, gen_vision_config: {theirs} is {params[theirs]}, '{name}' has {sizes[ours]}.")
    return dict(sizes)


def _aligner(config: Mapping[str, Any], section: str, width: int) -> int:
    """Its number of linear layers."""
    params = _params(config, section)
    kind = params.get("projector_type", "mlp_gelu")
    if kind != "mlp_gelu":
        raise ValueError(f"config.json, {section}: the projector is '{kind}', a Janus of transformers has 'mlp_gelu'.")
    if params.get("n_embed", width) != width:
        raise ValueError(f"config.json, {section}: n_embed is {params['n_embed']}, but the trunk is {width} wide.")
    return params.get("depth", 1)


def _params(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    part = config.get(section)
    if not isinstance(part, Mapping):
        raise ValueError(f"config.json lacks {section}: it is not the config of a whole Janus; download it again.")
    return dict(part.get("params") or {})
