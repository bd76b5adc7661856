"""How fast images are drawn and texts written, here and in `transformers`, on the same weights, prompts and images.

Each trial is a process of its own, in turns: load, warm up, fill a batch, decode its images. A step is one code of every image,
or one token of every text where there are no images. A mix is one batch here; `transformers`, which cannot mix, draws all
images and then writes all texts, each in one batch. The floor is what no implementation goes below: reading the weights of
trunk and head once a step, and keys and values of every row so far, at the speed at which this device reads memory.
"""

import json
import sys
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unimm.bench.subprocess_trials import peak_bytes
from unimm.models.attention import cache_keyword

PROMPT = "There are three small green triangles left of a large blue square"
QUESTION = "What is to be seen in this picture, and how many of it are there?"
WARM_UP = 8
BYTES_A_WEIGHT = {"int8": 1.0, "fp8": 1.0, "int4": 0.5}
BANDWIDTH_BYTES = {"cpu": 2**28, "cuda": 2**33}
"""Read at a time: more than any cache holds, and on a GPU so much that launching it is nothing, if half its free memory is."""


@dataclass(frozen=True)
class Trial:
    """One measurement. who: a peer. weights: "as dtype", or one of unimm's of fewer bits. kernels: the name of unimm's
    (`kernels_of`). guidance_scale: 1.0 is off.

    num_images, num_texts: so many of each at once; a text is `num_tokens` about an image.
    prompts: of the images; none: one of our own, in several lengths. temperature: of their codes. as_trained: whether unimm
        fills its rows and guesses codes as it does in a training, instead of one code of all images at a time.
    """

    who: str
    folder: str
    device: str
    dtype: str
    num_images: int
    num_texts: int = 0
    num_tokens: int = 64
    guidance_scale: float = 5.0
    weights: str = "as dtype"
    kernels: str | None = None
    prompts: tuple[str, ...] | list[str] = ()
    temperature: float = 1.0
    as_trained: bool = False

    @property
    def num_rows(self) -> int:
        """Rows that a step of unimm's has: a guided image has two."""
        return self.num_images * (1 if self.guidance_scale == 1.0 else 2) + self.num_texts


@dataclass
class Work:
    """A prepared trial: fill everything (and report when the first ids are there), codes to pixels.

    num_codes: an image. floor_bytes: that a step must read; 0 where they are not counted.
    """

    fill: Callable[[Callable[[], None]], torch.Tensor]
    decode: Callable[[torch.Tensor], Any]
    num_codes: int
    floor_bytes: float = 0.0


def run_trial(trial: Trial) -> dict[str, float]:
    """Measure once, in this process.

    Returns:
        `seconds` (all codes and tokens), `cpu_seconds` (that this process was computing meanwhile), `first_seconds` (until the
        first of them), `ms_a_step`, `images_a_second`,
        `ids_a_second` (codes and tokens), `decode_seconds` (codes to pixels, once warm), `floor_ms` (of unimm's trials), and
        `peak_gib` of the device, on a CPU of the process.
    """
    work = (_open_ours if trial.who == "unimm" else _open_theirs)(trial)
    device = torch.device(trial.device)
    times: list[float] = []
    started, used = time.perf_counter(), time.process_time()
    seconds, codes = _timed(lambda: work.fill(lambda: times.append(time.perf_counter())), device)
    used = time.process_time() - used
    assert codes.shape == (trial.num_images, work.num_codes)
    decode_seconds = 0.0
    if trial.num_images:
        work.decode(codes[:1])
        decode_seconds, _ = _timed(lambda: work.decode(codes), device)
    num_steps = work.num_codes if trial.num_images else trial.num_tokens
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()  # before the floor takes its own
    return {
        "seconds": seconds,
        "cpu_seconds": used,
        "first_seconds": times[0] - started,
        "ms_a_step": 1e3 * seconds / num_steps,
        "images_a_second": trial.num_images / seconds,
        "ids_a_second": (trial.num_images * work.num_codes + trial.num_texts * trial.num_tokens) / seconds,
        "decode_seconds": decode_seconds,
        "floor_ms": 1e3 * work.floor_bytes / read_bandwidth(device),
        "peak_gib": peak / 2**30,
    }


def read_bandwidth(device: torch.device, num_bytes: int | None = None, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second at which the device reads memory: the best of a few sums over so many bytes [default: over more than any
    cache holds]."""
    num_bytes = num_bytes or BANDWIDTH_BYTES.get(device.type, BANDWIDTH_BYTES["cpu"])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        num_bytes = min(num_bytes, torch.cuda.mem_get_info(device)[0] // 8 * 4)
    content = torch.ones(num_bytes // 4, device=device)
    return num_bytes / min(_timed(content.sum, device, clock)[0] for _ in range(8))


def _open_ours(trial: Trial) -> Work:
    from unimm.inference.decode.workload import Limits
    from unimm.inference.engine import load

    weights = None if trial.weights == "as dtype" else trial.weights
    # One code at a time, as the others have it: random weights say nothing of how many guesses would be right.
    limits = None if trial.as_trained else Limits(window=1, max_rows=trial.num_rows)
    engine = load(trial.folder, trial.device, trial.dtype, weights=weights, limits=limits, kernels=trial.kernels)
    num_codes = engine.image_tokenizer.num_codes
    engine.decoder.fill(requests_of(engine, trial, WARM_UP, WARM_UP))

    def fill(first: Callable[[], None]) -> torch.Tensor:
        filled: list[list[int]] = [[] for _ in range(trial.num_images + trial.num_texts)]
        for new in engine.decoder.steps(requests_of(engine, trial, num_codes, trial.num_tokens)):
            first()
            for index, token in new.items():
                filled[index].append(token)
        return torch.tensor(filled[: trial.num_images], dtype=torch.long).view(-1, num_codes)

    return Work(fill, engine.decode_codes, num_codes, _floor_bytes(engine, trial))


def requests_of(engine: Any, trial: Trial, num_codes: int, num_tokens: int) -> list[Any]:
    """What a trial asks of an engine of ours (a `Request` each): drawings of so many codes, then texts of so many tokens."""
    from unimm.data.template import Turn
    from unimm.inference.decode.request import Request
    from unimm.inference.decode.sampling import Sampling
    from unimm.sequence import Kind, Segment, Sequence

    drawings = [engine.template.draw(prompt, num_codes=num_codes) for prompt in _drawn(trial)]
    texts = []
    for image, question in _questions(trial):
        asked = engine.template.chat([Turn("user", (engine.template.look(image), question))], num_tokens).opened()
        # Without stop ids: random weights stop anywhere.
        texts.append(Sequence((*asked.segments[:-1], Segment.blank(Kind.TEXT, num_tokens))))
    drawn = [Request(one, Sampling(trial.temperature, index=i), trial.guidance_scale) for i, one in enumerate(drawings)]
    return drawn + [Request(one) for one in texts]


def _floor_bytes(engine: Any, trial: Trial) -> float:
    """Weights of trunk and head, and half of the keys and values of images that are whole."""
    if trial.num_texts or not trial.num_images:
        return 0.0  # a mix changes from step to step
    num_codes = engine.image_tokenizer.num_codes
    size: int = next(engine.model.parameters()).element_size()
    bytes_a_weight = BYTES_A_WEIGHT.get(trial.weights, size)
    parts = (engine.model.trunk, engine.model.codes.head)
    weights = sum(p.numel() for part in parts for p in part.parameters()) * bytes_a_weight
    trunk = engine.model.config.trunk_config()
    head_dim = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    length = engine.template.draw(PROMPT, num_codes=num_codes).given.length + num_codes / 2
    of_position = 2 * trunk.num_hidden_layers * trunk.num_key_value_heads * head_dim * size
    return weights + of_position * trial.num_rows * length


@torch.inference_mode()
def _open_theirs(trial: Trial) -> Work:
    from transformers import AutoProcessor, DynamicCache, JanusForConditionalGeneration

    processor = AutoProcessor.from_pretrained(trial.folder)
    dtype = getattr(torch, trial.dtype)
    model: Any = JanusForConditionalGeneration.from_pretrained(trial.folder, dtype=dtype, device_map=trial.device)
    processor.tokenizer.padding_side = "left"
    drawing = {"generation_mode": "image", "do_sample": True, "top_k": 0, "guidance_scale": trial.guidance_scale}
    drawing |= {} if trial.temperature == 1.0 else {"temperature": trial.temperature}
    writing = {"generation_mode": "text", "do_sample": False}

    def written(contents: list[list[dict]]) -> list[str]:
        chats = [[{"role": "user", "content": content}] for content in contents]
        return [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]

    def draw(**more: Any) -> torch.Tensor:
        prompts = written([[{"type": "text", "text": prompt}] for prompt in _drawn(trial)])
        inputs = processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt").to(trial.device)
        try:
            # A list of its own each time: theirs adds its guidance to the one that it is given.
            return model.generate(**inputs, **drawing, **{name: copy(value) for name, value in more.items()})
        except (AttributeError, TypeError):  # its static cache, which is the faster one, does not work in every version
            return model.generate(**inputs, **drawing, **more, **{cache_keyword(model): DynamicCache()})

    def write(num_tokens: int, **more: Any) -> None:
        images, questions = zip(*_questions(trial), strict=True)
        prompts = written([[{"type": "image"}, {"type": "text", "text": question}] for question in questions])
        inputs = processor(text=prompts, images=list(images), padding=True, return_tensors="pt").to(trial.device, dtype)
        model.generate(**inputs, **writing, **more, max_new_tokens=num_tokens, min_new_tokens=num_tokens)

    num_codes = model.config.vision_config.num_image_tokens

    def fill(first: Callable[[], None]) -> torch.Tensor:
        def hear(_: Any, logits: torch.Tensor) -> torch.Tensor:
            first()  # the first ids are chosen now
            return logits

        codes = draw(logits_processor=[hear]) if trial.num_images else torch.empty(0, num_codes)
        if trial.num_texts:
            write(trial.num_tokens, logits_processor=[hear])
        return codes

    if trial.num_images:
        draw(max_new_tokens=WARM_UP)
    if trial.num_texts:
        write(WARM_UP)

    @torch.inference_mode()
    def decode(codes: torch.Tensor) -> torch.Tensor:
        return model.decode_image_tokens(codes)

    return Work(fill, decode, num_codes)


def _drawn(trial: Trial) -> list[str]:
    """The prompts of its images."""
    return list(trial.prompts) or _prompts(PROMPT, trial.num_images)


def _prompts(text: str, count: int) -> list[str]:
    """Texts of different lengths."""
    words = text.split()
    return [" ".join(words[: len(words) - index % 6]) for index in range(count)]


def _questions(trial: Trial) -> list[tuple[np.ndarray, str]]:
    """Images (384, 384, 3) uint8 and what is asked about them."""
    noise = np.random.default_rng(0)
    questions = _prompts(QUESTION, trial.num_texts)
    return [(noise.integers(0, 256, (384, 384, 3), dtype=np.uint8), question) for question in questions]


def _timed(work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    settle()
    started = clock()
    result = work()
    settle()
    return clock() - started, result


def main() -> None:
    """One trial: JSON in, JSON out."""
    print(json.dumps(run_trial(Trial(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
