"""Two towers of other libraries: CLIP, SigLIP and SigLIP 2 of `transformers`, and whatever `open_clip` writes, with the calls
that an engine has: `embed_images`, `embed_texts`, `classify`.

The libraries themselves run them, with their own preparation of images and texts, so vectors are theirs. What differs: images
are read as everywhere here (upright, transparency on white), and no text becomes a special token.

    config.json, model_type clip | siglip | siglip2    transformers
    open_clip_config.json                               open_clip (pip install "unimm[open-clip]")

Weights are read from safetensors only.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimm.checkpoints.folder import TWO_TOWERS
from unimm.checkpoints.weight_files import CONFIG, DOWNLOADED, find_folder
from unimm.data.image import decode_image
from unimm.data.records import ImageLike
from unimm.inference.embedding import EmbeddingCalls, Prepared, Towers, towers_fingerprint
from unimm.inference.engine import Engine, load
from unimm.runtime.atomic_files import read_json
from unimm.runtime.devices import choose_device, choose_dtype

OPEN_CLIP = "open_clip_config.json"

PADDED = ("siglip", "siglip2")
"""Types whose texts are padded to the full length, as they were in training: the text tower reads the last position."""

FILES = [*DOWNLOADED, "*.txt", "*.model"]
"""Of a hub repository: text tokenizers have such files, too."""


class TwoTowers(EmbeddingCalls):
    """A checkpoint of two towers and nothing else. Made by `unimm.load_towers`."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    @property
    def towers(self) -> Towers:
        """The two towers."""
        return self._towers


def load_towers(
    path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None, **engine: Any
) -> TwoTowers | Engine:
    """Something that embeds images and texts: a CLIP or SigLIP of `transformers` or `open_clip`, or a model of ours that has
    contrastive heads.

    Args:
        path: a folder, or a hub id such as "openai/clip-vit-base-patch32".
        device: as `unimm.load` takes it.
        dtype: default: float32 for two towers, and what `unimm.load` takes for a model of ours.
        engine: what `unimm.load` takes further, for a model of ours.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, a library that it needs is not installed, or the model has
            no heads that embed.
    """
    folder = find_folder(path, downloaded=FILES)
    kind = _kind_of(folder)
    if kind is None:
        model = load(path, device, dtype, **engine)
        _ = model.towers  # says so now, where it has none
        return model
    where = choose_device(device)
    open_one = _open_clip if kind == OPEN_CLIP else _open_transformers
    return TwoTowers(open_one(folder, where, choose_dtype(dtype or torch.float32, where)))


def _kind_of(folder: Path) -> str | None:
    """Which library's two towers a folder holds: a type of `TWO_TOWERS`, `OPEN_CLIP`, or None."""
    kind = (read_json(folder / CONFIG) or {}).get("model_type")
    is_open = (folder / OPEN_CLIP).is_file()
    if kind in TWO_TOWERS and not (is_open and not any(folder.glob("model*.safetensors"))):
        return str(kind)
    return OPEN_CLIP if is_open else None


class _TransformersTowers(Towers):
    """A CLIP, SigLIP or SigLIP 2 of `transformers`."""

    def __init__(self, model: nn.Module, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.logit_scale, self.logit_bias = _logit(model)
        self._model: Any = model.to(device, dtype).eval()
        self._images, self._tokenizer, self._device = processor.image_processor, processor.tokenizer, device
        config = self._model.config
        self._length = int(config.text_config.max_position_embeddings)
        self._padding = "max_length" if config.model_type in PADDED else True
        self.dim = self.embed_texts(["a"]).shape[1]

    @property
    def fingerprint(self) -> str:
        prepared = json.loads(self._images.to_json_string())
        sizes = {"images": prepared, "words": sorted(self._tokenizer.get_vocab().items())}
        return towers_fingerprint(self._model.named_parameters(), sizes)

    def prepare(self, image: ImageLike) -> Prepared:
        read = self._images(images=decode_image(image), return_tensors="pt")
        return {name: tensor[0] for name, tensor in read.items()}

    @torch.inference_mode()
    def embed_prepared(self, images: list[Prepared]) -> Tensor:
        stacked = {name: torch.stack([one[name] for one in images]) for name in images[0]}
        return _unit(self._model.get_image_features(**self._moved(stacked)))

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        read = self._tokenizer(
            texts,
            padding=self._padding,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
            split_special_tokens=True,
        )
        return _unit(self._model.get_text_features(**self._moved(dict(read))))

    def _moved(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self._model.dtype
        return {name: one.to(self._device, dtype if one.is_floating_point() else None) for name, one in inputs.items()}


class _OpenClipTowers(Towers):
    """A model of `open_clip`."""

    def __init__(self, model: nn.Module, prepare: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.logit_scale, self.logit_bias = _logit(model)
        self._model: Any = model.to(device, dtype).eval()
        self._prepare, self._tokenizer, self._device = prepare, tokenizer, device
        own = getattr(tokenizer, "tokenizer", None)  # of transformers, inside open_clip's
        if own is not None:
            own.split_special_tokens = True
        self._special = re.compile("|".join(map(re.escape, ("<start_of_text>", "<end_of_text>"))), re.IGNORECASE)
        self._dtype = dtype
        self.dim = self.embed_texts(["a"]).shape[1]

    @property
    def fingerprint(self) -> str:
        sizes = {"images": self._model.visual.preprocess_cfg, "words": type(self._tokenizer).__name__}
        return towers_fingerprint(self._model.named_parameters(), sizes)

    def prepare(self, image: ImageLike) -> Prepared:
        return {"pixels": self._prepare(decode_image(image))}

    @torch.inference_mode()
    def embed_prepared(self, images: list[Prepared]) -> Tensor:
        pixels = torch.stack([one["pixels"] for one in images]).to(self._device, self._dtype)
        return _unit(self._model.encode_image(pixels))

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        plain = [self._special.sub(lambda found: f"< {found[0][1:]}", text) for text in texts]
        return _unit(self._model.encode_text(self._tokenizer(plain).to(self._device)))


def _open_transformers(folder: Path, device: torch.device, dtype: torch.dtype) -> Towers:
    from transformers import AutoModel, AutoProcessor

    try:
        with _quiet():
            model, loaded = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a damaged folder fails in many ways, and so does a library that is not there
        raise _unreadable(folder, error) from error
    lacking = sorted(loaded["missing_keys"]) + sorted(str(one) for one in loaded["mismatched_keys"])
    if lacking:
        raise ValueError(f"The weights in {folder} do not fit its config.json: {len(lacking)} are missing ({lacking[0]}).")
    return _TransformersTowers(model, processor, device, dtype)


def _open_clip(folder: Path, device: torch.device, dtype: torch.dtype) -> Towers:
    try:
        library: Any = import_module("open_clip")
    except ImportError as error:
        said = f"{folder} is a model of open_clip, which is not installed"
        raise ValueError(f'{said}: pip install "unimm[open-clip]".') from error
    weights = sorted(folder.glob("open_clip*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} has no safetensors, and pickled weights are not opened: ask its author for safetensors.")
    name = f"local-dir:{folder}"
    try:
        with _quiet():
            model = library.create_model(name, load_weights=False, pretrained_text=False, device="cpu")
            library.load_checkpoint(model, str(weights[0]), strict=True)
            tokenizer = library.get_tokenizer(name)
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error
    settings = library.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    prepare = library.transform.image_transform_v2(settings, is_train=False)
    return _OpenClipTowers(model, prepare, tokenizer, device, dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries show and log while they open something is for developers; what matters to a user is raised."""
    from transformers.utils import logging as shown

    before, is_shown = logging.root.manager.disable, shown.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    shown.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if is_shown:
            shown.enable_progress_bar()


def _logit(model: Any) -> tuple[float, float | None]:
    """The factor and the bias of a model's logits, in float32, before the model is rounded."""
    bias = getattr(model, "logit_bias", None)
    return float(model.logit_scale.detach().float().exp()), None if bias is None else float(bias.detach().float())


def _unit(found: Any) -> Tensor:
    """Unit vectors float32 on the CPU; `transformers` gives them alone, or with what else it computed."""
    return normalize(getattr(found, "pooler_output", found).float(), dim=-1).cpu()


def _unreadable(folder: Path, error: Exception) -> ValueError:
    said = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"The two towers in {folder} cannot be read ({said[:200].rstrip('.')}): copy or download them again.")
