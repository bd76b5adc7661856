"""Parts that a model can be joined from, with random weights: a language model, a SigLIP, an image tokenizer."""

from pathlib import Path
from typing import Any

import torch
from conftest import tiny_image_tokenizer, tiny_text_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, SiglipConfig, SiglipModel

from unimm.checkpoints.image_tokenizer_folder import save_image_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
VISION |= {"patch_size": 8, "hidden_act": "gelu"}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
TRUNK = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def llama(size: int) -> LlamaConfig:
    return LlamaConfig(**TRUNK, vocab_size=size, tie_word_embeddings=False)


def tied_qwen(size: int) -> Qwen3Config:
    return Qwen3Config(**TRUNK, head_dim=16, vocab_size=size, tie_word_embeddings=True)


def save_parts(folder: Path, trunk_config: Any, extra_ids: int = 0) -> tuple[Any, Any]:
    """A language model with a tokenizer, a SigLIP and an image tokenizer, with random weights, below a folder."""
    torch.manual_seed(1)
    tokenizer = tiny_text_tokenizer()
    language_model = AutoModelForCausalLM.from_config(trunk_config(len(tokenizer) + extra_ids)).eval()
    language_model.save_pretrained(folder / "llm")
    tokenizer.tokenizer.save_pretrained(str(folder / "llm"))
    siglip = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)).eval()
    siglip.save_pretrained(folder / "siglip")
    save_image_tokenizer(folder / "images", tiny_image_tokenizer())
    return language_model, siglip
