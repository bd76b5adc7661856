"""Tiny Janus models made by `transformers` itself, with sizes drawn from a seed, and our models' answers to compare with."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import SENTENCES
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor
from transformers import (
    DynamicCache,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    PreTrainedTokenizerFast,
)

from unimm.data.text import SPECIAL_NAMES
from unimm.models.attention import cache_keyword
from unimm.models.unified import UnifiedModel

IMAGE_ID = 7


PRO_1B = {
    "model_type": "multi_modality",
    "aligner_config": {
        "cls": "MlpProjector",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 2048, "projector_type": "mlp_gelu"},
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "params": {"depth": 2, "input_dim": 8, "n_embed": 2048, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "params": {"image_token_embed": 2048, "image_token_size": 16384, "n_embed": 2048},
    },
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
    "language_config": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 16384,
        "vocab_size": 102400,
        "torch_dtype": "bfloat16",
        "_attn_implementation": "flash_attention_2",
    },
    "vision_config": {
        "cls": "CLIPVisionTower",
        "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1},
    },
}
"""What DeepSeek's config.json of Janus-Pro-1B says of sizes."""


def pro_7b() -> dict[str, Any]:
    """That of Janus-Pro-7B: what it does not write is LlamaConfig's default."""
    config = json.loads(json.dumps(PRO_1B))
    trunk = config["language_config"]
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        del trunk[name]
    trunk["num_hidden_layers"] = 30
    for section in ("aligner_config", "gen_aligner_config", "gen_head_config"):
        config[section]["params"]["n_embed"] = 4096
    config["gen_head_config"]["params"]["image_token_embed"] = 4096
    return config


@dataclass(frozen=True)
class Ids:
    """Special ids as `save_model` wants them."""

    bos: int = 1
    eos: int = 2
    pad: int = 3
    image_placeholder: int = IMAGE_ID
    begin_of_image: int = 8
    end_of_image: int = 9


def draw_config(seed: int, **changes: Any) -> JanusConfig:
    """Odd sizes; llama and qwen3 trunks, grouped heads and tied embeddings come in turn. changes: of the text config."""
    draw = random.Random(seed)
    heads, head_dim, grid = draw.choice([2, 4, 6]), draw.choice([8, 12]), draw.choice([2, 3, 4])
    patch, vision_heads = draw.choice([4, 6, 8]), draw.choice([1, 2, 3])
    width, tied = heads * head_dim, seed % 2 == 0
    text = {
        "model_type": ["llama", "qwen3"][seed % 4 == 3],
        "vocab_size": draw.randint(50, 90),
        "hidden_size": width,
        "intermediate_size": draw.randint(20, 50),
        "num_hidden_layers": draw.choice([1, 2]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2, heads]),
        "head_dim": head_dim,
        "max_position_embeddings": draw.choice([128, 300]),
        "pad_token_id": 3,
        "tie_word_embeddings": tied,
        **changes,
    }
    vision = {
        "image_size": grid * patch,
        "patch_size": patch,
        "hidden_size": vision_heads * 10,
        "num_attention_heads": vision_heads,
        "num_hidden_layers": draw.choice([1, 2]),
        "mlp_ratio": draw.choice([2.0, 3.7, 4]),
        "projection_dim": width,
        "depth": draw.choice([1, 2, 3]),
        "num_image_tokens": grid**2,
    }
    vq = {
        "embed_dim": draw.choice([4, 8]),
        "num_embeddings": draw.randint(20, 60),
        "latent_channels": draw.choice([16, 24]),
        "base_channels": 32,
        "channel_multiplier": draw.choice([[1, 2], [1, 1], [1, 2, 1]]),
        "num_res_blocks": draw.choice([1, 2]),
        "num_hidden_layers": draw.choice([1, 2, 3]),
        "projection_dim": width,
        "image_token_embed_dim": width,
    }
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=IMAGE_ID, tie_word_embeddings=tied)


def make_janus(seed: int, config: JanusConfig | None = None) -> JanusForConditionalGeneration:
    """A Janus of random weights large enough that a wrong one shows."""
    torch.manual_seed(seed)
    janus = JanusForConditionalGeneration(config or draw_config(seed)).eval()
    with torch.no_grad():
        for parameter in janus.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return janus


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level, with Janus' special tokens behind the ordinary ones, in another order every time; roles are text in every
    third, as in Janus-1.3B.
    """
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False))
    names = [name for noun, name in SPECIAL_NAMES.items() if seed % 3 or noun not in ("user", "assistant")]
    random.Random(seed).shuffle(names)
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    bos = SPECIAL_NAMES["bos"]
    backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{noun}_token": SPECIAL_NAMES[noun] for noun in ("bos", "eos", "pad")},
        extra_special_tokens={
            "image_token": SPECIAL_NAMES["image_placeholder"],
            "boi_token": SPECIAL_NAMES["begin_of_image"],
            "eoi_token": SPECIAL_NAMES["end_of_image"],
        },
        clean_up_tokenization_spaces=False,
    )


CHAT_TEMPLATE = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{ 'USER: ' }}{%- for p in m.content -%}{{ '<image_placeholder>\\n' if p.type == 'image' else p.text | trim }}{%- endfor -%}
{{ '\\n\\n' }}
{%- else -%}{{ 'ASSISTANT: ' + m.content[0].text | trim + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def write_checkpoint(folder: Path, seed: int) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """A whole folder that `transformers` alone has written: weights, tokenizer, processor, chat template, generation config."""
    tokenizer = make_tokenizer(seed)
    janus = make_janus(seed, draw_config(seed, vocab_size=len(tokenizer) + seed, max_position_embeddings=300))
    janus.config.image_token_id = tokenizer.convert_tokens_to_ids(SPECIAL_NAMES["image_placeholder"])
    generation = janus.generation_config
    generation.update(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    generation.update(pad_token_id=tokenizer.pad_token_id, guidance_scale=5.0)
    generation.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids(SPECIAL_NAMES["begin_of_image"])}
    size = janus.config.vision_config.image_size
    half = [0.5, 0.5, 0.5]
    images = JanusImageProcessor(size={"height": size, "width": size}, min_size=2, image_mean=half, image_std=half)
    roles = ("<|User|>", "<|Assistant|>") if seed % 3 else ("User", "Assistant")
    processor = JanusProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("USER", roles[0]).replace("ASSISTANT", roles[1]),
        use_default_system_prompt=seed % 2 == 0,
        num_image_tokens=janus.config.vision_config.num_image_tokens,
    )
    janus.save_pretrained(folder)
    processor.save_pretrained(folder)
    return janus, processor


def draw(theirs: JanusForConditionalGeneration, inputs: Any) -> Tensor:
    """The likeliest codes with guidance 5, by `transformers`: from a cache that grows; its static one often fails."""
    settings = {"generation_mode": "image", "do_sample": False, "guidance_scale": 5.0}
    return theirs.generate(**inputs, **settings, **{cache_keyword(theirs): DynamicCache()})


@torch.no_grad()
def their_answers(janus: Any, seed: int = 0) -> dict[str, Tensor]:
    """Text logits behind an image, image logits, features and decoded pixels of fixed random input."""
    ids, pixels, codes = _inputs(janus.config, seed)
    out = janus.model(input_ids=ids, pixel_values=pixels)
    return {
        "text": janus.lm_head(out.last_hidden_state),
        "image": janus.model.generation_head(out.last_hidden_state),
        "features": janus.model.vision_model(pixels).last_hidden_state,
        "codes": janus.prepare_embeddings_for_image_generation(codes),
        "pixels": janus.model.vqmodel.decode(codes),
    }


@torch.no_grad()
def our_answers(model: UnifiedModel, image_tokenizer: Any, config: JanusConfig, seed: int = 0) -> dict[str, Tensor]:
    """The same of our models. config: the Janus' own, for drawing the same input."""
    ids, pixels, codes = _inputs(config, seed)
    embeddings = model.text.embed(ids)
    embeddings[ids == IMAGE_ID] = model.pixels.projector(model.pixels.features(pixels)).flatten(0, 1)
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    hidden = model.hidden(embeddings, mask, torch.arange(length)[None])
    return {
        "text": model.text.logits(hidden),
        "image": model.codes.logits(hidden),
        "features": model.pixels.tower(pixels),
        "codes": model.codes.embed(codes),
        "pixels": image_tokenizer.decode(codes),
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def _inputs(config: JanusConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size, count = config.vision_config.image_size, config.vision_config.num_image_tokens
    words = torch.randint(10, config.text_config.vocab_size, (1, 9), generator=generator)
    ids = torch.cat([words[:, :3], torch.full((1, count), IMAGE_ID), words[:, 3:]], dim=1)
    pixels = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    codes = torch.randint(config.vq_config.num_embeddings, (1, count), generator=generator)
    return ids, pixels, codes
