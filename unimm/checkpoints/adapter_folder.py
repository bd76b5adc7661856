"""An adapter as a folder in peft's own format: adapter_config.json and adapter_model.safetensors.

Written with the names of `transformers`' Janus wherever the model is one, so that the folder opens on both sides:

    unimm.load(BASE, adapter=FOLDER)                                                   merged, at once
    PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(BASE), FOLDER)

and with our own names for the rest. Parts that were trained in full beside the adapters lie in it in full, as peft's
`modules_to_save`: base and adapter together are always the model. Reading needs no peft, and adds to the weights what the
matrices make; settings that are not plain LoRA are refused by name. Nothing is pickled or unpickled.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimm.checkpoints import janus_config
from unimm.checkpoints.weight_files import SafetensorFiles, find_folder
from unimm.checkpoints.weight_names import OWN, TRANSFORMERS, Names
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.lora import ADAPTER, adapted_layers, adapter_parameters, delta, import_peft
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import read_json, whole_folder, write_json

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
DRAWING = "generation_config.json"
"""How the model draws with the adapter, as a model folder says it."""
PREFIX = "base_model.model."
BASE_SAMPLE = "unimm_base_sample"
"""In the metadata of the tensors' file: a few weights of the base, to detect another base of the same size."""

SAMPLE_SIZE = 32
PLAIN = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"), "peft_type": ("LORA",)}
"""Settings of peft with the values that mean plain LoRA."""

HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save"),
    *("peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora"),
}
"""Settings of peft that are followed here, or that change nothing once an adapter is trained."""


class _Home(NamedTuple):
    """Where a tensor of a file lies in our model: a parameter, and from which of its values on, in which shape."""

    name: str
    start: int
    shape: tuple[int, ...]


# -- write ---------------------------------------------------------------------------------------------------------------


def save_adapter(
    path: str | Path,
    model: UnifiedModel,
    image_tokenizer: ImageTokenizer,
    base: str,
    trained: Iterable[str] = (),
    drawing: Mapping[str, float] | None = None,
) -> None:
    """Write the adapters of a model, and the parts that were trained in full, replacing an adapter folder that was there.

    base: the folder or hub id of the model that they were attached to. trained: parts by name; those with adapters need
    not be left out. drawing: how the model draws with the adapter where a caller does not say (guidance_scale, ...); None: as
    the base does.

    Raises:
        ValueError: the path holds something else than an adapter, or peft is missing.
    """
    names = OWN if janus_config.why_not_janus(model.config, image_tokenizer.config) else TRANSFORMERS
    layers = adapted_layers(model)
    tensors = _adapter_tensors(layers, names)
    whole = _whole_tensors(model, trained, names)
    sample = {name: _sample(layers[name].base_layer.weight) for name in (next(iter(layers)), next(reversed(layers)))}
    with whole_folder(Path(path).resolve(), CONFIG, "an adapter folder") as folder:
        write_json(folder / CONFIG, _peft_config(model, tensors, whole, base))
        if drawing is not None:
            write_json(folder / DRAWING, dict(drawing))
        content = {f"{PREFIX}{name}": tensor.detach().cpu().clone().contiguous() for name, tensor in (tensors | whole).items()}
        save_file(content, folder / TENSORS, {"format": "pt", BASE_SAMPLE: json.dumps(sample)})
        (folder / "README.md").write_text(_card(base, names is TRANSFORMERS), encoding="utf-8")


def _adapter_tensors(layers: dict[str, Any], names: Names) -> dict[str, Tensor]:
    """A and B of every layer, by the files' names. Where ours is several layers there, each has the same A, its part of B."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        theirs = names.entries(f"{name}.weight", tuple(layer.base_layer.weight.shape))
        for one, part_oR in zip(theirs, b_OR.chunk(len(theirs)), strict=True):
            module = one.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": a_RI, f"{module}.lora_B.weight": part_oR}
    return tensors


def _whole_tensors(model: UnifiedModel, trained: Iterable[str], names: Names) -> dict[str, Tensor]:
    parts = model.parts()
    chosen = [parts[name] for name in trained if name in parts and not adapter_parameters(parts[name])]
    moved = {id(parameter) for part in chosen for parameter in part.parameters()}
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in moved:
            theirs = names.entries(name, tuple(parameter.shape))
            pieces = parameter.chunk(len(theirs)) if len(theirs) > 1 else (parameter,)
            tensors |= {one: piece.reshape(shape) for (one, shape), piece in zip(theirs.items(), pieces, strict=True)}
    return tensors


def _peft_config(model: UnifiedModel, tensors: dict[str, Tensor], whole: dict[str, Tensor], base: str) -> dict[str, Any]:
    """adapter_config.json, by peft: the settings that were attached, with the files' names."""
    attached: Any = model.peft_config  # peft leaves it there
    used = attached[ADAPTER]
    layers = [re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", re.escape(name.rpartition(".lora_")[0])) for name in tensors]
    settings = import_peft().LoraConfig(
        r=used.r,
        lora_alpha=used.lora_alpha,
        lora_dropout=used.lora_dropout,
        target_modules="|".join(dict.fromkeys(layers)),
        modules_to_save=list(dict.fromkeys(name.rpartition(".")[0] for name in whole)) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}


def _sample(weight: Tensor) -> list[float]:
    return weight.detach().flatten()[:SAMPLE_SIZE].float().tolist()


# -- read ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge_adapter(model: UnifiedModel, adapter: str | Path) -> set[str]:
    """Add an adapter to the weights of the base it was made for, in place, in their dtype.

    adapter: a folder or hub id, written by `unimm train lora=...` or by peft around `transformers`' Janus.

    Returns:
        The names of the parts that it changes.

    Raises:
        ValueError: there is none, it is pickled, damaged, not plain LoRA, or made for another base; then nothing has changed.
    """
    folder = find_folder(adapter)
    config = _read_config(folder)
    files = _open(folder, next(model.parameters()).device)
    homes, pairs, whole = _find_homes(model, folder, files, config)
    _check_sample(model, folder, config)
    rank = config["r"]
    scaling = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_ties(parameters, homes, whole, folder)
    for name in [*pairs, *whole]:
        home = homes[name]
        parameter = parameters[home.name]
        weight = parameter.detach().clone(memory_format=torch.contiguous_format)  # it may be mapped from a file
        place = weight.view(-1)[home.start :][: torch.Size(home.shape).numel()].view(home.shape)
        if name in pairs:
            a_RI, b_OR = (files.read(f"{PREFIX}{pairs[name]}.lora_{letter}.weight") for letter in "AB")
            place.copy_(place.float() + delta(a_RI, b_OR, scaling))
        else:
            place.copy_(files.read(f"{PREFIX}{name}"))
        parameter.data = weight
    changed = {id(parameters[homes[name].name]) for name in (*pairs, *whole)}
    return {name for name, part in model.parts().items() if any(id(one) in changed for one in part.parameters())}


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. ValueError: it is missing, or is of more than plain LoRA."""
    config = read_json(folder / CONFIG)
    if config is None:
        raise ValueError(f"{folder} has no {CONFIG}: name an adapter folder, written by `unimm train lora=default` or by peft.")
    foreign = [key for key, values in PLAIN.items() if config.get(key, values[0]) not in values]
    foreign += [key for key, value in config.items() if key not in {*PLAIN, *HARMLESS} and value not in (None, False, {}, [])]
    if foreign:
        said = ", ".join(f"{key}={config[key]!r}" for key in foreign)
        raise ValueError(
            f"{folder} is not plain LoRA ({said}): merge it by peft into transformers' Janus, and take the result."
        )
    if not isinstance(config.get("r"), int) or config["r"] < 1 or not isinstance(config.get("lora_alpha"), int | float):
        raise ValueError(f"{folder}: {CONFIG} gives no usable r and lora_alpha: copy or download the adapter again.")
    return config


def _open(folder: Path, device: torch.device) -> SafetensorFiles:
    if not (folder / TENSORS).is_file():
        raise ValueError(
            f"{folder} has no {TENSORS}, and a pickled adapter_model.bin is never opened: save it again by a newer peft."
        )
    return SafetensorFiles(folder, device, [folder / TENSORS])


def _find_homes(
    model: UnifiedModel, folder: Path, files: SafetensorFiles, config: dict[str, Any]
) -> tuple[dict[str, _Home], dict[str, str], list[str]]:
    """Where everything in the file goes: homes by weight, the layers' names of pairs A and B by weight, weights given whole.

    ValueError: something has no home in the model, or does not fit there.
    """
    inside = [name.removeprefix(PREFIX) for name in files.shapes]
    layers = dict.fromkeys(name.rpartition(".lora_")[0] for name in inside if ".lora_" in name)
    pairs = {f"{layer}.weight": layer for layer in layers}
    whole = [name for name in inside if ".lora_" not in name]
    candidates = [_homes(model, names) for names in (TRANSFORMERS, OWN)]
    homes = max(candidates, key=lambda homes: sum(name in homes for name in [*pairs, *whole]))
    made_for = f"it was made for another base ({config.get('base_model_name_or_path')})"
    if unknown := [name for name in [*pairs, *whole] if name not in homes]:
        raise ValueError(f"{folder} changes {len(unknown)} weights that the model lacks, such as {unknown[0]}: {made_for}.")
    rank = config["r"]
    expected = {f"{name}": homes[name].shape for name in whole}
    for name, layer in pairs.items():
        outputs, inputs = homes[name].shape
        expected |= {f"{layer}.lora_A.weight": (rank, inputs), f"{layer}.lora_B.weight": (outputs, rank)}
    given = {name.removeprefix(PREFIX): shape for name, shape in files.shapes.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"{folder}: {name} is {given.get(name, 'missing')}, where the model and rank {rank} ask for "
                f"{expected.get(name, 'nothing')}: {made_for}, or its files are not of one adapter."
            )
    return homes, pairs, whole


def _homes(model: UnifiedModel, names: Names) -> dict[str, _Home]:
    """All of a model's parameters, by the names of a kind of file; empty where there are no such names for it."""
    homes: dict[str, _Home] = {}
    try:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            start = 0
            for theirs, shape in names.entries(name, tuple(parameter.shape)).items():
                homes[theirs] = _Home(name, start, shape)
                start += torch.Size(shape).numel()
    except ValueError:
        return {}
    return homes


def _check_ties(parameters: dict[str, Any], homes: dict[str, _Home], whole: list[str], folder: Path) -> None:
    """ValueError: one of two tied weights was trained without the other: the model has one place for both."""
    names: dict[int, set[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), set()).add(name)
    given = {homes[name].name for name in whole}
    for tied in names.values():
        if (apart := tied & given) and apart != tied:
            raise ValueError(
                f"{folder} holds {', '.join(apart)} alone, which the model has tied to another: untie them by peft."
            )


def _check_sample(model: UnifiedModel, folder: Path, config: dict[str, Any]) -> None:
    """Detect another base of the same size. ValueError: its weights differ by more than another dtype explains."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        samples = json.loads((file.metadata() or {}).get(BASE_SAMPLE, "{}"))
    for name, values in samples.items():
        own, meant = torch.tensor(_sample(model.get_parameter(f"{name}.weight"))), torch.tensor(values)
        if own.shape != meant.shape or not torch.allclose(own, meant, rtol=2**-8, atol=1e-6):
            raise ValueError(
                f"{folder} was made for another base: name {config.get('base_model_name_or_path')} as it was, "
                f"not one of the same size or one that the adapter is merged into already."
            )


def _card(base: str, is_janus: bool) -> str:
    """README.md of an adapter folder."""
    usage = f'engine = unimm.load("{base}", adapter="path of this folder")'
    in_peft = (
        "\nfrom peft import PeftModel\nfrom transformers import JanusForConditionalGeneration\n\n"
        f'base = JanusForConditionalGeneration.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "path of this folder")\n'
    )
    return f"""\
---
base_model: {base}
library_name: peft
tags: [unimm, janus, lora]
---

# A LoRA adapter

It changes {base}, and is of no use without it: tokenizers and prompt format are the base's.

```python
import unimm

{usage}
{in_peft if is_janus else ""}```
"""
