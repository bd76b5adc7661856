"""What a mistyped key or option was probably meant to be, wherever it lies.

A key is compared part by part: `trainer.lr` and `optimizer.lr` have the last part of `trainer.optimizer.lr`, and another one of
it. Names that other code bases use (`learning_rate`, `batch_size`) lead to ours. An option is compared without the folder that
it lies in, and by `_`, `-` and `/` alike: `janus_pro_align` and `pro_align` are both near `janus/pro_align`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

NEAR = 0.7
"""How alike two names are, from 0 to 1, so that one may be meant by the other."""

TIED = 0.02
"""Keys that are nearly as alike as the nearest one are named beside it."""

MOST_NAMED = 3

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), "lr"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "global_batch_size", "micro_batch_size"), "num_rows"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"), "num_micro_batches"),
    **dict.fromkeys(("steps", "num_steps", "max_iters", "num_train_steps", "total_steps"), "max_steps"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(("seq_len", "max_seq_len", "max_length", "context_length", "block_size"), "num_positions"),
    **dict.fromkeys(("bf16", "fp16", "mixed_precision", "amp"), "precision"),
    **dict.fromkeys(("output_dir", "save_dir", "run_dir", "outdir"), "out"),
    **dict.fromkeys(("wandb", "report_to", "logger"), "trackers"),
    **dict.fromkeys(("grad_clip", "gradient_clip_val", "clip_grad_norm"), "max_grad_norm"),
    **dict.fromkeys(("gradient_checkpointing", "checkpointing", "remat"), "activation_checkpointing"),
    **dict.fromkeys(("eval_every", "eval_steps", "val_every", "eval_interval"), "validate_every"),
    **dict.fromkeys(("log_every", "logging_steps", "log_interval"), "report_every"),
    **dict.fromkeys(("save_steps", "save_interval", "checkpoint_every"), "save_every"),
    **dict.fromkeys(("ema", "ema_rate"), "ema_decay"),
    **dict.fromkeys(("checkpoint", "ckpt", "pretrained", "model_path", "model_name_or_path", "from_pretrained"), "init_from"),
    **dict.fromkeys(("vae", "vq_model", "image_tokeniser"), "image_tokenizer"),
    **dict.fromkeys(("workers", "num_workers_per_rank", "dataloader_num_workers"), "num_workers"),
}
"""Last parts of keys as other code bases name them, and as they are named here."""


def keys_of_config(config: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a composed configuration by its whole name, without Hydra's own."""
    for key in config:
        if key == "_target_" or (not prefix and key == "hydra"):
            continue
        name = f"{prefix}{key}"
        yield name
        child = config._get_node(key)
        if hasattr(child, "items") and not child._is_none() and not child._is_missing() and not child._is_interpolation():
            yield from keys_of_config(child, f"{name}.")


def nearest_keys(key: str, keys: Iterable[str]) -> list[str]:
    """The keys that may be meant by one that there is not: the nearest first, at most three, none if nothing is near."""
    parts = key.replace("/", ".").split(".")
    scores = {known: score for known in dict.fromkeys(keys) if (score := _likeness(parts, known.split("."))) is not None}
    best = max(scores.values(), default=0.0)
    near = [known for known, score in scores.items() if score >= best - TIED]
    return sorted(near, key=lambda known: (-difflib.SequenceMatcher(None, key, known).ratio(), known))[:MOST_NAMED]


def nearest_options(name: str, options: Iterable[str]) -> list[str]:
    """The options that may be meant by a name, as `worlds/mastery` by `mastery`; at most three, none if nothing is near."""
    spelled = {option: _spelled(option) for option in options}
    own = _spelled(name)
    for is_near in (
        lambda other: other == own,
        lambda other: other.endswith(f"/{own}"),
        lambda other: own.endswith(f"/{other}"),
    ):
        if near := [option for option, other in spelled.items() if is_near(other)]:
            return near[:MOST_NAMED]
    close = difflib.get_close_matches(own, spelled.values(), 1, NEAR)
    if not close:
        ends = {other.rsplit("/", 1)[-1]: other for other in spelled.values()}
        close = [ends[end] for end in difflib.get_close_matches(own.rsplit("/", 1)[-1], ends, 1, NEAR)]
    return [option for option, other in spelled.items() if other in close][:MOST_NAMED]


def likeness(one: str, other: str) -> float:
    """How alike two names are, from 0 to 1; one that begins the other, as `batch` does `batch_size`, is near."""
    if SYNONYMS.get(one) == other:
        return 0.99
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    return max(ratio, 0.8) if len(one) > 2 and other.startswith(f"{one}_") else ratio


def did_you_mean(names: list[str]) -> str:
    """The end of a sentence: the names that may be meant, or nothing but a full stop."""
    if not names:
        return "."
    quoted = [f"'{name}'" for name in names]
    listed = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return f"; did you mean {listed}?"


def _likeness(parts: list[str], known: list[str]) -> float | None:
    """How near a key is to a known one; None: it is not. The last parts must be alike; then every other part counts."""
    last = likeness(parts[-1], known[-1])
    if last < NEAR:
        return None
    others = sum(max((likeness(part, other) for other in known[:-1]), default=0.0) for part in parts[:-1])
    return 2 * last + others - 0.05 * max(0, len(known) - len(parts))


def _spelled(option: str) -> str:
    return re.sub(r"[_.\s-]", "/", option).lower()
