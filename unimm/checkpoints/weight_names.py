"""One table of weight names: ours, `transformers`' Janus, and DeepSeek's own repositories; and those of parts alone, a SigLIP's
and a language model's in `transformers`. No other file contains a foreign one.

    ours                transformers                            DeepSeek
    trunk.norm.weight   model.language_model.norm.weight        language_model.model.norm.weight

The image tokenizer's tensors are called `image_tokenizer.*`. Of its quantizer a Janus holds the codebook alone. Sources:
transformers/models/janus, deepseek-ai/Janus (janus and janusflow).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]
"""Tensors by name, each with its shape."""

CODEBOOK = "image_tokenizer.quantize.codebook"
"""Stands for the whole quantizer in a Janus: (K, D)."""

MAX_DEPTH = 8
"""Linear layers of an aligner: as many as the table has rows for."""


@dataclass(frozen=True)
class Names:
    """How the tensors of a folder are called.

    entries: one of ours, by name and shape, to those that hold it in the files: laid end to end they are it. ValueError: there
        is no name for it.
    unused: matches what files may hold beside, and no model needs.
    """

    entries: Callable[[str, tuple[int, ...]], Shapes]
    unused: re.Pattern[str] = re.compile(r"(?!)")  # nothing


def _aligner(ours: str, transformers: str, deepseek: str) -> list[tuple[str, str, str]]:
    """Rows of an aligner: ours and DeepSeek's count the GELUs between the linear layers too."""
    rows = [(f"{ours}.0.*", f"{transformers}.fc1.*", f"{deepseek}.0.*")]
    for layer in range(1, MAX_DEPTH):
        rows.append((f"{ours}.{2 * layer}.*", f"{transformers}.hidden_layers.{layer - 1}.*", f"{deepseek}.{2 * layer}.*"))
    return rows


def _blocks(ours: str, transformers: str, deepseek: str) -> list[tuple[str, str, str]]:
    """Rows of the vision tower's blocks."""
    names = [
        ("norm1.*", "layer_norm1.*", "norm1.*"),
        ("attn.qkv.*", "self_attn.[qkv]_proj.*", "attn.qkv.*"),
        ("attn.proj.*", "self_attn.projection_layer.*", "attn.proj.*"),
        ("norm2.*", "layer_norm2.*", "norm2.*"),
        ("mlp.*", "mlp.*", "mlp.*"),
    ]
    return [(f"{ours}.*.{one}", f"{transformers}.*.{two}", f"{deepseek}.*.{three}") for one, two, three in names]


_TOWER, _TOWER_T, _TOWER_D = "pixels.tower.transformer", "model.vision_model", "vision_model.vision_tower"
_IMAGE, _IMAGE_T, _IMAGE_D = "image_tokenizer", "model.vqmodel", "gen_vision_model"

_TABLE = [
    ("text.embedding.weight", "model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
    ("text.head.weight", "lm_head.weight", "language_model.lm_head.weight"),
    ("trunk.*", "model.language_model.*", "language_model.model.*"),
    (f"{_TOWER}.patch_embed.proj.*", f"{_TOWER_T}.embeddings.patch_embedding.*", f"{_TOWER_D}.patch_embed.proj.*"),
    (f"{_TOWER}.pos_embed", f"{_TOWER_T}.embeddings.position_embedding.weight", f"{_TOWER_D}.pos_embed"),
    *_blocks(f"{_TOWER}.blocks", f"{_TOWER_T}.encoder.layers", f"{_TOWER_D}.blocks"),
    (f"{_TOWER}.norm.*", f"{_TOWER_T}.post_layernorm.*", f"{_TOWER_D}.norm.*"),
    *_aligner("pixels.projector", "model.aligner", "aligner.layers"),
    ("codes.embedding.weight", "model.generation_embeddings.weight", "gen_embed.weight"),
    *_aligner("codes.aligner", "model.generation_aligner", "gen_aligner.layers"),
    ("codes.head.0.*", "model.generation_head.proj_out.*", "gen_head.output_mlp_projector.*"),
    ("codes.head.2.*", "model.generation_head.vision_head.*", "gen_head.vision_head.*"),
    (CODEBOOK, f"{_IMAGE_T}.quantize.embedding.weight", f"{_IMAGE_D}.quantize.embedding.weight"),
    (f"{_IMAGE}.*.mid.block_1.*", f"{_IMAGE_T}.*.mid.block_1.*", f"{_IMAGE_D}.*.mid.0.*"),
    (f"{_IMAGE}.*.mid.attn_1.*", f"{_IMAGE_T}.*.mid.attn_1.*", f"{_IMAGE_D}.*.mid.1.*"),
    (f"{_IMAGE}.*.mid.block_2.*", f"{_IMAGE_T}.*.mid.block_2.*", f"{_IMAGE_D}.*.mid.2.*"),
    (f"{_IMAGE}.encoder.down.*.block.*", f"{_IMAGE_T}.encoder.down.*.block.*", f"{_IMAGE_D}.encoder.conv_blocks.*.res.*"),
    (f"{_IMAGE}.encoder.down.*", f"{_IMAGE_T}.encoder.down.*", f"{_IMAGE_D}.encoder.conv_blocks.*"),
    (f"{_IMAGE}.decoder.up.*.block.*", f"{_IMAGE_T}.decoder.up.*.block.*", f"{_IMAGE_D}.decoder.conv_blocks.*.res.*"),
    (f"{_IMAGE}.decoder.up.*", f"{_IMAGE_T}.decoder.up.*", f"{_IMAGE_D}.decoder.conv_blocks.*"),
    (f"{_IMAGE}.*", f"{_IMAGE_T}.*", f"{_IMAGE_D}.*"),
]
"""Ours, transformers', DeepSeek's; `*` is the same in all, `[qkv]` is three tensors where ours is one. The first that fits."""

_PATTERNS = [(re.compile(re.escape(row[0]).replace(r"\*", "(.+)")), row) for row in _TABLE]


def _own_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    return {name: shape}


def _transformers_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    theirs = _translate(name, 1)
    if "[qkv]" in theirs:
        third = (shape[0] // 3, *shape[1:])
        return {theirs.replace("[qkv]", letter): third for letter in "qkv"}
    # The position embedding has a batch axis of one in timm, none there.
    return {theirs: shape[1:] if name.endswith(".pos_embed") else shape}


def _deepseek_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    return {_translate(name, 2): shape}


def _siglip_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    theirs = _transformers_entries(name, shape)
    return {key.removeprefix("model.").replace(".projection_layer.", ".out_proj."): shape for key, shape in theirs.items()}


def _siglip_tower_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    return {key.removeprefix("vision_model."): part for key, part in _siglip_entries(name, shape).items()}


def _language_model_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    return {key.replace("model.language_model.", "model."): part for key, part in _transformers_entries(name, shape).items()}


_JANUSFLOW_PARTS = {
    "pixels.projector.0.": "vision_und_enc_aligner.",
    "latents.encoder.": "vision_gen_enc_model.",
    "latents.encoder_aligner.": "vision_gen_enc_aligner.",
    "latents.decoder_norm.": "vision_gen_dec_aligner_norm.",
    "latents.decoder_aligner.": "vision_gen_dec_aligner.",
    "latents.decoder.": "vision_gen_dec_model.",
}
"""Parts of a JanusFlow that a Janus has not: ours and theirs; inside of them names are the same."""


def _janusflow_entries(name: str, shape: tuple[int, ...]) -> Shapes:
    for ours, theirs in _JANUSFLOW_PARTS.items():
        if name.startswith(ours):
            return {theirs + name.removeprefix(ours): shape}
    return {_translate(name, 2).replace("vision_model.vision_tower.", "vision_und_enc_model.vision_tower."): shape}


def _translate(name: str, column: int) -> str:
    for pattern, row in _PATTERNS:
        if match := pattern.fullmatch(name):
            theirs = row[column]
            for part in match.groups():
                theirs = theirs.replace("*", part, 1)
            return theirs
    raise ValueError(f"No name in a Janus is known for {name}: add a row to the table in models/weight_names.py.")


OWN = Names(_own_entries)
TRANSFORMERS = Names(_transformers_entries)
DEEPSEEK = Names(
    _deepseek_entries,
    # SigLIP's pooling head, counters of used codes, and tables that Llama computes.
    re.compile(r"vision_model\.vision_tower\.attn_pool\..+|gen_vision_model\.quantize\.codebook_used|.+\.rotary_emb\.inv_freq"),
)
JANUSFLOW = Names(_janusflow_entries, re.compile(r"vision_und_enc_model\.vision_tower\.attn_pool\..+|.+\.rotary_emb\.inv_freq"))
SIGLIP = Names(
    _siglip_entries,
    # The text tower with its temperature, SigLIP's pooling head, and a table that older versions wrote.
    re.compile(r"(?!vision_model\.).+|vision_model\.head\..+|vision_model\.embeddings\.position_ids"),
)
SIGLIP_TOWER = Names(_siglip_tower_entries, re.compile(r"head\..+|embeddings\.position_ids"))
LANGUAGE_MODEL = Names(_language_model_entries, re.compile(r".+\.rotary_emb\.inv_freq"))
