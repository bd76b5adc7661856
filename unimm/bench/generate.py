"""How fast images are drawn, here and in `transformers`, on the same weights and prompts.

Each trial is a process of its own, in turns: load, warm up, draw a batch, decode its images. A step is one code of every image.
The floor is what no implementation goes below: reading the weights of trunk and image head once a step, and keys and values of
every row so far, at the speed at which this device reads memory.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from unimm.bench.trials import peak_bytes

PROMPT = "There are three small green triangles left of a large blue square"
WARM_UP_CODES = 8
BANDWIDTH_BYTES = 2**28


@dataclass(frozen=True)
class Trial:
    """One measurement. who: a peer; weights: "as dtype" or "int8" (unimm alone). guidance_scale: 1.0 is off."""

    who: str
    folder: str
    device: str
    dtype: str
    batch_size: int
    guidance_scale: float = 5.0
    weights: str = "as dtype"


def run_trial(trial: Trial) -> dict[str, float]:
    """Measure once, in this process.

    Returns:
        `seconds` (all codes), `ms_a_step`, `images_a_second` (codes alone), `decode_seconds` (codes to pixels), `floor_ms` (of
        unimm's trials), and `peak_gib` of the device, on a CPU of the process.
    """
    draw, decode, num_codes, floor_bytes = (_open_ours if trial.who == "unimm" else _open_theirs)(trial)
    device = torch.device(trial.device)
    draw_seconds, codes = _timed(draw, device)
    decode_seconds, _ = _timed(lambda: decode(codes), device)
    assert codes.shape == (trial.batch_size, num_codes)
    return {
        "seconds": draw_seconds,
        "ms_a_step": 1e3 * draw_seconds / num_codes,
        "images_a_second": trial.batch_size / draw_seconds,
        "decode_seconds": decode_seconds,
        "floor_ms": 1e3 * floor_bytes / read_bandwidth(device),
        "peak_gib": (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()) / 2**30,
    }


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second at which the device reads memory: the best of a few sums over more than any cache holds."""
    content = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    return BANDWIDTH_BYTES / min(_timed(content.sum, device)[0] for _ in range(8))


def _open_ours(trial: Trial) -> tuple[Callable, Callable, int, float]:
    from unimm.inference.decode import Decoder
    from unimm.inference.load import load
    from unimm.inference.rows import Request

    engine = load(trial.folder, trial.device, trial.dtype)
    weights = None if trial.weights == "as dtype" else trial.weights
    engine.decoder = Decoder(engine.model, engine.tokenizer.special.pad, weights=weights)
    engine.decoder.fill([Request(engine.template.draw(PROMPT, num_codes=WARM_UP_CODES), guidance_scale=trial.guidance_scale)])
    prompts = _prompts(trial.batch_size)
    config, num_codes = engine.model.config, engine.image_tokenizer.num_codes
    size = next(engine.model.parameters()).element_size()
    length = engine.template.draw(PROMPT, num_codes=num_codes).given.length + num_codes / 2
    weights = sum(p.numel() for part in (engine.model.trunk, engine.model.codes.head) for p in part.parameters()) * size
    trunk = config.trunk_config()
    head_dim = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    rows = trial.batch_size * (1 if trial.guidance_scale == 1.0 else 2)
    cached = 2 * trunk.num_hidden_layers * trunk.num_key_value_heads * head_dim * size * rows * length

    def draw() -> torch.Tensor:
        return engine.generate_codes(prompts, seed=0, guidance_scale=trial.guidance_scale, temperature=1.0)[:, 0]

    return draw, engine.decode_codes, num_codes, weights + cached


@torch.inference_mode()
def _open_theirs(trial: Trial) -> tuple[Callable, Callable, int, float]:
    from transformers import AutoProcessor, DynamicCache, JanusForConditionalGeneration

    processor = AutoProcessor.from_pretrained(trial.folder)
    dtype = getattr(torch, trial.dtype)
    model: Any = JanusForConditionalGeneration.from_pretrained(trial.folder, dtype=dtype, device_map=trial.device)
    chats = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in _prompts(trial.batch_size)]
    written = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    inputs = processor(text=written, generation_mode="image", padding=True, return_tensors="pt").to(trial.device)
    settings = {"generation_mode": "image", "do_sample": True, "top_k": 0, "guidance_scale": trial.guidance_scale}
    model.generate(**inputs, max_new_tokens=WARM_UP_CODES)

    def draw() -> torch.Tensor:
        try:
            return model.generate(**inputs, **settings)
        except (AttributeError, TypeError):  # its static cache, which is the faster one, does not work in every version
            return model.generate(**inputs, **settings, past_key_values=DynamicCache())

    @torch.inference_mode()
    def decode(codes: torch.Tensor) -> torch.Tensor:
        return model.decode_image_tokens(codes)

    return draw, decode, model.config.vision_config.num_image_tokens, 0.0


def _prompts(count: int) -> list[str]:
    """Prompts of different lengths."""
    words = PROMPT.split()
    return [" ".join(words[: len(words) - index % 6]) for index in range(count)]


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    settle()
    started = time.perf_counter()
    result = work()
    settle()
    return time.perf_counter() - started, result


def main() -> None:
    """One trial, given and told as JSON."""
    print(json.dumps(run_trial(Trial(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
