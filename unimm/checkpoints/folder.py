"""A model as a folder: config.json, safetensors and the small files around them. Whole or not there; nothing is pickled.

Three layouts, distinguished by `model_type` in config.json:

- `janus`: what `transformers` reads as JanusForConditionalGeneration. Written whenever the model is expressible so. Of the
  quantizer it holds the codebook alone, which we store row-normalised: decoding stays the same, since Janus normalises at each
  use, and encoding, where `transformers` forgets to, becomes right.
- `unimm`: our own, for the rest. Sizes: `model` (UnifiedConfig) and `image_tokenizer` (ImageTokenizerConfig), field by field;
  weights: our state dicts, names unchanged, the image tokenizer's under `image_tokenizer.`.
- `multi_modality`: DeepSeek's own repositories. Read, never written.

In what we write, the key `unimm` holds the version of this format and what the caller adds (`extra`), such as the prompt
format, and the configs of `further_modules`. Parts of another package are named by `_target_` (`unimm.runtime.plugins`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from unimm.checkpoints import deepseek_config, janus_config, janus_processor
from unimm.checkpoints.adapter_folder import merge_adapter
from unimm.checkpoints.config_json import from_json, to_json
from unimm.checkpoints.further_modules import (
    FurtherModules,
    change_module_dtype,
    image_tokenizer_config,
    read_further_modules,
    without_heads_of,
    write_further_modules,
)
from unimm.checkpoints.weight_files import CONFIG, WeightFiles, empty_parameters, find_folder, open_weights, read_config
from unimm.checkpoints.weight_names import CODEBOOK, DEEPSEEK, OWN, TRANSFORMERS, Names, Shapes
from unimm.models.image_tokenizer.codebook import unit_rows
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import CosineQuantizer
from unimm.models.lora import adapted_layers
from unimm.models.unified import CodesConfig, UnifiedConfig, UnifiedModel
from unimm.models.vision.projectors import ProjectorConfig
from unimm.models.vision.tower import VisionConfig
from unimm.runtime.atomic_files import whole_folder, write_json
from unimm.runtime.format_version import check_format

VERSION = 1
MODEL_TYPE = "unimm"
TWO_TOWERS = ("clip", "siglip", "siglip2")  # of transformers, for `unimm.retrieval.towers`
PREFIX = "image_tokenizer."
QUANTIZER = f"{PREFIX}quantize."


@dataclass(frozen=True)
class LoadedModel:
    """What a folder held: both models in evaluation mode (the image tokenizer frozen), config.json, what else was kept.

    folder: where the files lie (a hub id's are in the cache); the text tokenizer's are among them.
    """

    model: UnifiedModel
    image_tokenizer: ImageTokenizer
    config: dict[str, Any]
    extra: dict[str, Any]
    folder: Path
    further: FurtherModules = field(default_factory=FurtherModules)


def save_model(  # noqa: PLR0913 - a folder has as many parts
    path: str | Path,
    model: UnifiedModel,
    image_tokenizer: ImageTokenizer,
    special: janus_config.SpecialIds,
    *,
    extra: Mapping[str, Any] | None = None,
    drawing: Mapping[str, float] | None = None,
    further: FurtherModules | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
    max_shard_size: int | str = "5GB",
    notes: str = "",
) -> list[str]:
    """Write a model folder, replacing a model folder that was there.

    special: ids of the special tokens (bos, eos, pad, image_placeholder, begin_of_image).
    extra: JSON-able, given back by `load_model`; `version` and `quantizer` are names taken. Its `prompt_format` (user,
        assistant, system_prompt) also shapes the chat template.
    further: image tokenizers beside the one that it draws with, and heads.
    drawing: what its generation_config.json says of drawing (guidance_scale, temperature, ...); what is missing is Janus'.
    save_tokenizer: called with the folder that is being written, for the text tokenizer's files.
    notes: Markdown for the model card.

    Returns:
        Why the model is no Janus for `transformers` and lies in our own layout; empty when it is one.

    Raises:
        ValueError: the path holds something else than a model, the image tokenizer does not fit the model, or adapters are
            attached to it.
    """
    if adapted_layers(model):
        raise ValueError("The model has adapters attached: merge them first (unimm.models.lora.merge), or save_adapter.")
    final = Path(path).resolve()
    _check_codes(model.config.codes, image_tokenizer)
    reasons = janus_config.why_not_janus(model.config, image_tokenizer.config)
    if (sees := ((extra or {}).get("prompt_format") or {}).get("sees", "pixels")) != "pixels":
        reasons.append(f"it sees {sees}, a Janus sees pixels")
    if ((extra or {}).get("prompt_format") or {}).get("tiles") is not None:
        reasons.append("it sees large pictures in tiles, a Janus sees one square")
    with whole_folder(final, CONFIG, "a model folder") as folder:
        _write_weights(folder, model, image_tokenizer, OWN if reasons else TRANSFORMERS, max_shard_size)
        written = write_further_modules(folder, further or FurtherModules())
        _write_configs(folder, model, image_tokenizer, special, {**(extra or {}), **written}, reasons)
        num_parameters = sum(parameter.numel() for part in (model, image_tokenizer) for parameter in part.parameters())
        (folder / "README.md").write_text(janus_processor.model_card(num_parameters, reasons, notes), encoding="utf-8")
        write_json(folder / "generation_config.json", janus_processor.generation_config(special, drawing or {}))
        if save_tokenizer is not None:
            save_tokenizer(folder)
    return reasons


def load_model(
    path_or_hub_id: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    from_pickle: bool = False,
    adapter: str | Path | None = None,
    allow_code: bool = False,
) -> LoadedModel:
    """Read a model folder, or a hub id through `huggingface_hub` and its cache.

    Weights are mapped from disk straight to the device and dtype (None: as stored); on a CPU in the stored dtype they are not
    even copied. Buffers, and all of the image tokenizer's quantizer, stay fp32. Pickled weights are read only if `from_pickle`.
    An adapter is merged into the weights as they are stored, which are then rounded once.

    allow_code: import the packages that config.json names parts of (`unimm.runtime.plugins`).

    Raises:
        ValueError: there is no such model, or it cannot be read, or the adapter is not made for it: one sentence says why and
            what to do.
    """
    folder = find_folder(path_or_hub_id, from_pickle)
    raw = read_config(folder)
    own = dict(raw.get("unimm") or {})
    check_format(own, VERSION, folder / CONFIG, "version")
    own.pop("version", None)
    config, tokenizer_config, names = _read_layout(raw, folder, allow_code)
    files = open_weights(folder, torch.device(device), from_pickle)
    config = _settle_tie(config, files, names)
    with empty_parameters():
        model, image_tokenizer = UnifiedModel(config), ImageTokenizer(tokenizer_config, learns=False)
    if config.trunk_config().tie_word_embeddings:
        model.text.head.weight = model.text.embedding.weight  # parameters on "meta" are separate ones
    _assign(model, image_tokenizer, files, None if adapter else dtype, names)
    changed = set[str]()
    if adapter is not None:
        changed = merge_adapter(model, adapter)
        change_dtype(model, [image_tokenizer], dtype)
    model.to(device).eval()
    image_tokenizer.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    further = read_further_modules(folder, own, torch.device(device), dtype, allow_code)
    further = without_heads_of(further, changed, adapter or "")
    for key in ("quantizer", "image_tokenizers", "heads"):
        own.pop(key, None)
    return LoadedModel(model, image_tokenizer.freeze(), raw, own, folder, further)


def change_dtype(
    model: UnifiedModel,
    image_tokenizers: Iterable[ImageTokenizer],
    dtype: torch.dtype | None,
    heads: Iterable[nn.Module] = (),
) -> None:
    """Have the weights in a dtype as if `load_model` had been called with it, one after another; quantizers and temperatures
    stay as they are. None: all as they are."""
    for module in (model, *image_tokenizers, *heads):
        change_module_dtype(module, dtype)


def _check_codes(codes: CodesConfig | None, image_tokenizer: ImageTokenizer) -> None:
    if codes is None:
        return
    ours, theirs = (codes.num_codes, codes.codebook_size), (image_tokenizer.num_codes, image_tokenizer.codebook_size)
    if ours != theirs:
        raise ValueError(
            f"The model draws {ours[0]} codes of {ours[1]}, the image tokenizer has {theirs[0]} of {theirs[1]}: "
            f"give the tokenizer that the model was trained with."
        )


def _write_weights(
    folder: Path, model: UnifiedModel, image_tokenizer: ImageTokenizer, names: Names, max_shard_size: int | str
) -> None:
    files: dict[str, Tensor] = {}
    for name, tensor in _tensors(model, image_tokenizer, names).items():
        files |= _split(_whole(tensor), names.entries(name, tuple(tensor.shape)))
    # Makes them contiguous (convolutions lie channels-last in memory); shards and an index above the limit.
    save_torch_state_dict(files, folder, max_shard_size=max_shard_size)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that has its storage for itself: decoding on a GPU makes q/k/v, and gate/up, views of one joint tensor, and
    safetensors refuses a view that covers only a part of its storage. Copied to the host: most of a model is such views."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.detach().to("cpu", copy=True)


def _write_configs(
    folder: Path,
    model: UnifiedModel,
    image_tokenizer: ImageTokenizer,
    special: janus_config.SpecialIds,
    extra: dict[str, Any],
    reasons: list[str],
) -> None:
    if reasons:
        sizes = {**to_json(model.config), "trunk": janus_config.trunk_dict(model.config)}
        del sizes["ports"]
        if model.config.ports:
            sizes["ports"] = {name: to_json(port, is_named=True) for name, port in model.config.ports.items()}
        config = {"model_type": MODEL_TYPE, "model": sizes, "image_tokenizer": to_json(image_tokenizer.config)}
    else:
        dtype = next(model.parameters()).dtype
        config = janus_config.to_janus_config(model.config, image_tokenizer.config, special, dtype)
    config["unimm"] = {**extra, **config.get("unimm", {}), "version": VERSION}
    write_json(folder / CONFIG, config)
    image = model.config.vision.image_size, model.num_image_positions
    janus_processor.write_processor(folder, *image, extra.get("prompt_format") or {})


def _read_layout(raw: Mapping[str, Any], folder: Path, allow_code: bool) -> tuple[UnifiedConfig, ImageTokenizerConfig, Names]:
    """Sizes and names of weights, by what config.json says the folder holds."""
    kind = raw.get("model_type")
    if kind == janus_config.MODEL_TYPE:
        return *janus_config.from_janus_config(raw), TRANSFORMERS
    if kind == deepseek_config.MODEL_TYPE and "vision_gen_enc_config" in raw:
        raise ValueError(
            f"{folder} is a JanusFlow, and its folder lacks the autoencoder that it draws with: put both together once, "
            f"`unimm convert {folder} OUT --latents-tokenizer FOLDER`."
        )
    if kind == deepseek_config.MODEL_TYPE:
        return *janus_config.from_janus_config(deepseek_config.as_janus_config(raw)), DEEPSEEK
    if kind == MODEL_TYPE:
        return *_read_own_sizes(raw, allow_code), OWN
    known = f"'{janus_config.MODEL_TYPE}', '{deepseek_config.MODEL_TYPE}' (DeepSeek's own Janus) and '{MODEL_TYPE}'"
    if kind in TWO_TOWERS:
        known += "; two towers as these are opened by unimm.load_towers, and by the commands classify, index and search"
    raise ValueError(f"{folder} holds a model of type {kind!r}: unimm opens {known}.")


def _read_own_sizes(raw: Mapping[str, Any], allow_code: bool) -> tuple[UnifiedConfig, ImageTokenizerConfig]:
    kinds = {"vision": VisionConfig, "codes": CodesConfig, "projector": ProjectorConfig}
    sizes = dict(raw.get("model") or {})
    for key, kind in kinds.items():
        if key not in sizes or sizes[key] is not None:  # a model that draws nothing has no codes
            sizes[key] = from_json(kind, sizes.get(key) or {}, f"config.json, model.{key}", allow_code)
    ports: dict[str, Any] = sizes.get("ports") or {}
    sizes["ports"] = {k: from_json(None, v, f"config.json, model.ports.{k}", allow_code) for k, v in ports.items()}
    image_tokenizer = image_tokenizer_config(raw.get("image_tokenizer") or {}, "config.json, image_tokenizer", allow_code)
    return from_json(UnifiedConfig, sizes, "config.json, model", allow_code), image_tokenizer


def _settle_tie(config: UnifiedConfig, files: WeightFiles, names: Names) -> UnifiedConfig:
    """A config that says "tied" beside a file that holds another head is wrong (the default changed): the file decides."""
    (head,), (embedding,) = names.entries("text.head.weight", ()), names.entries("text.embedding.weight", ())
    if not config.trunk_config().tie_word_embeddings or head not in files.shapes:
        return config
    if embedding in files.shapes and torch.equal(files.read(head), files.read(embedding)):
        files.leave_out(head)
        return config
    return replace(config, trunk={**config.trunk, "tie_word_embeddings": False})


def _tensors(model: UnifiedModel, image_tokenizer: ImageTokenizer, names: Names) -> dict[str, Tensor]:
    """Every tensor that a folder holds, by our names. In a Janus the quantizer is its codebook, in ours what it keeps."""
    tensors = dict(model.state_dict())
    if model.text.head.weight is model.text.embedding.weight:
        del tensors["text.head.weight"]
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in image_tokenizer.state_dict().items()}
    if names is not OWN:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(QUANTIZER)}
        tensors[CODEBOOK] = unit_rows(image_tokenizer.quantize.codebook.detach())
    return tensors


def _split(tensor: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """One of our tensors as a file's tensors: the inverse of laying them end to end."""
    if len(shapes) == 1:
        return {name: tensor.reshape(shape) for name, shape in shapes.items()}
    return {name: part.clone() for name, part in zip(shapes, tensor.chunk(len(shapes)), strict=True)}


def _assign(
    model: UnifiedModel, image_tokenizer: ImageTokenizer, files: WeightFiles, dtype: torch.dtype | None, names: Names
) -> None:
    """Put the files' tensors in place of the empty ones. ValueError: the names or shapes of files and model differ."""
    expected = _tensors(model, image_tokenizer, names)
    for name in [name for name in files.shapes if names.unused.fullmatch(name)]:
        files.leave_out(name)
    files.check({k: v for name, tensor in expected.items() for k, v in names.entries(name, tuple(tensor.shape)).items()})
    parameters = {*dict(model.named_parameters()), *(f"{PREFIX}{name}" for name, _ in image_tokenizer.named_parameters())}
    model_tensors, tokenizer_tensors, codebook = {}, {}, None
    for name, meant in expected.items():
        parts = [files.read(theirs) for theirs in names.entries(name, tuple(meant.shape))]
        tensor = (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(meant.shape)
        if name == CODEBOOK:
            codebook = tensor
        elif name.startswith(PREFIX):
            keep = name.startswith(QUANTIZER) or name not in parameters
            tokenizer_tensors[name.removeprefix(PREFIX)] = tensor if keep else tensor.to(dtype)
        else:
            model_tensors[name] = tensor.to(dtype) if name in parameters else tensor
    # Not strict: `check` was, and two things are on purpose in no file, a tied head and what a Janus' codebook stands for.
    model.load_state_dict(model_tensors, strict=False, assign=True)
    image_tokenizer.load_state_dict(tokenizer_tensors, strict=False, assign=True)
    if "text.head.weight" not in model_tensors:
        model.text.head.weight = model.text.embedding.weight
    if codebook is not None:
        assert isinstance(image_tokenizer.quantize, CosineQuantizer)
        image_tokenizer.quantize.load_codebook(codebook)
