"""DeepSeek's own drawing loop, as a peer: `PYTHON deepseek.py REPOSITORY {trial as JSON}`.

It runs by itself, in an environment that DeepSeek's code works in (transformers 4.46 or so), and imports nothing of the
package. The function `generate` of their generation_inference.py is taken as it stands, with random weights in the sizes of the
trial's checkpoint; it draws one prompt many times. Its `.cuda()` does nothing where the trial is for a CPU.
"""

import ast
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PROMPT_IDS = 24
NUM_CODES = 576


def main(repository: str, trial: dict) -> None:
    """Measure once, and print what `unimm.bench.generate` prints of the others."""
    sys.path.insert(0, repository)
    device = torch.device(trial["device"])
    if device.type == "cpu":
        setattr(torch.Tensor, "cuda", lambda tensor, *_: tensor)  # noqa: B010 - whatever the types say
    model = build(json.loads((Path(trial["folder"]) / "config.json").read_text()))
    model = model.to(device, getattr(torch, trial["dtype"])).eval()
    generate = find_function(Path(repository) / "generation_inference.py", "generate")
    seconds = watch(model, device)
    tokenizer = SimpleNamespace(encode=lambda prompt: list(range(1, PROMPT_IDS)))
    processor = SimpleNamespace(tokenizer=tokenizer, pad_id=0)
    os.chdir(tempfile.mkdtemp())  # it saves its drawings where it is
    settings = {"parallel_size": trial["num_images"], "cfg_weight": trial["guidance_scale"]}
    generate(model, processor, "", image_token_num_per_image=NUM_CODES, **settings)  # warm
    seconds.update(decode=0.0, first=None)
    started = seconds["started"] = time.perf_counter()
    generate(model, processor, "", image_token_num_per_image=NUM_CODES, **settings)
    drawing = seconds["drawn"] - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    measured = {
        "seconds": drawing,
        "first_seconds": seconds["first"] - started,
        "ms_a_step": 1e3 * drawing / NUM_CODES,
        "images_a_second": trial["num_images"] / drawing,
        "ids_a_second": trial["num_images"] * NUM_CODES / drawing,
        "decode_seconds": seconds["decode"],
        "floor_ms": 0.0,
        "peak_gib": (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak) / 2**30,
    }
    print(json.dumps(measured))


def build(config: dict) -> Any:
    """Their model in the sizes of a `transformers` Janus' configuration."""
    from janus.models import MultiModalityCausalLM  # pyright: ignore[reportMissingImports]
    from janus.models.modeling_vlm import MultiModalityConfig  # pyright: ignore[reportMissingImports]

    text, codes = config["text_config"], config["vq_config"]
    width, code_dim, num_codes = text["hidden_size"], codes["embed_dim"], codes["num_embeddings"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    aligner = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    tower = {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}
    torch.manual_seed(0)
    return MultiModalityCausalLM(
        MultiModalityConfig(
            vision_config={"cls": "CLIPVisionTower", "params": tower},
            aligner_config={"cls": "MlpProjector", "params": {**aligner, "input_dim": 1024}},
            gen_vision_config={"cls": "VQ-16", "params": {"image_token_size": num_codes, "n_embed": code_dim}},
            gen_aligner_config={"cls": "MlpProjector", "params": {**aligner, "input_dim": code_dim}},
            gen_head_config={
                "cls": "vision_head",
                "params": {"image_token_embed": width, "image_token_size": num_codes, "n_embed": width},
            },
            language_config={"model_type": "llama", "max_position_embeddings": 4096, **{name: text[name] for name in kept}},
        )
    )


def find_function(path: Path, name: str):
    """One function of a script, without running the rest of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    needed = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)) or getattr(node, "name", "") == name]
    names: dict = {}
    exec(compile(ast.Module(needed, []), str(path), "exec"), names)
    return names[name]


def watch(model: Any, device: torch.device) -> dict:
    """Note when the first code is chosen, when the last one is there, and how long pixels take."""
    seconds: dict = {"decode": 0.0, "first": None}
    vision, prepare = model.gen_vision_model, model.prepare_gen_img_embeds
    decode_code = vision.decode_code

    def settle() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def prepared(ids):
        if seconds["first"] is None:
            seconds["first"] = settle()
        return prepare(ids)

    def decoded(*arguments, **more):
        seconds["drawn"] = settle()
        pixels = decode_code(*arguments, **more)
        seconds["decode"] = settle() - seconds["drawn"]
        return pixels

    model.prepare_gen_img_embeds, vision.decode_code = prepared, decoded
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
