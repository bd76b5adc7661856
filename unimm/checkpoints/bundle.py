"""`ModelBundle`: everything that a model folder holds, in memory. Training, `join`, `average` and `convert` make, change and
save bundles; an `Engine` runs one.

    unified model       images and text in, text, codes and latents out
    image tokenizers    by name; "default" makes the codes that the model reads and draws, "latents" those that it draws by a
    flow text tokenizer      with the ids of its special tokens
    prompt format       roles and system prompt
    drawing defaults    guidance scale, temperature, top_k, top_p
    heads               further modules by name, such as the projections of a contrastive loss

Which prompt format, drawing defaults and image preparation a folder declares, in its files beside the weights:

    model type       prompts                                      drawings                 images
    unimm, janus     config.json, key `unimm` (if we wrote it)    generation_config.json   preprocessor_config.json
    janus            chat template, processor_config.json         generation_config.json   preprocessor_config.json
    multi_modality   processor_config.json (`sft_format`)         -                        preprocessor_config.json

The image processor may also stand inside processor_config.json. What is not written is as in Janus. What is written and cannot
be followed is refused: a wrong prompt or scale of pixels would only show as a worse model.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unimm.checkpoints import deepseek_config, janus_config
from unimm.checkpoints.drawing_defaults import DrawingDefaults, FlowDefaults, read_drawing_defaults, read_flow_defaults
from unimm.checkpoints.folder import LoadedModel, change_dtype, load_model, save_model
from unimm.checkpoints.further_modules import FurtherModules
from unimm.checkpoints.hub import upload_model
from unimm.checkpoints.janus_processor import DEFAULT_SYSTEM_PROMPT
from unimm.checkpoints.weight_files import find_folder
from unimm.data.records import LATENTS
from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer
from unimm.models.contrastive import NAME as CONTRASTIVE
from unimm.models.contrastive import ContrastiveHeads
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.ports.latents import LatentsPort
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import read_json
from unimm.sequence import Kind

OLD_ROLES = {"user": "User", "assistant": "Assistant"}
"""Janus-1.3B writes its roles as plain text; Janus-Pro has a token for each."""

SFT_FORMATS = {"deepseek": {}, "deepseek_old": OLD_ROLES}
"""DeepSeek's names of prompt formats that a Janus was trained with (conversation.py)."""


DEFAULT = "default"
"""The name of the image tokenizer whose codes a model reads and draws."""


@dataclass(frozen=True)
class ModelBundle:
    """A model with all that is needed to use it, train it on, and save it. Frozen: change one with `dataclasses.replace`.

    model, image_tokenizers, heads: on one device. A head has a `config`, a dataclass whose `build()` makes such a head.
    tokenizer: the text tokenizer.
    drawing: how it draws where a caller does not say. flow: how it draws by a flow then.
    """

    model: UnifiedModel
    image_tokenizers: Mapping[str, ImageTokenizer]
    tokenizer: TextTokenizer
    prompt_format: PromptFormat = field(default_factory=PromptFormat)
    drawing: DrawingDefaults = field(default_factory=DrawingDefaults)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    flow: FlowDefaults = field(default_factory=FlowDefaults)

    def __post_init__(self) -> None:
        names = ", ".join(self.image_tokenizers) or "none"
        if DEFAULT not in self.image_tokenizers and (
            self.model.config.codes is not None or LATENTS not in self.image_tokenizers
        ):
            raise ValueError(f"A model draws with the image tokenizer '{DEFAULT}', and this bundle has {names}: name one so.")
        port, tokenizer = self.latents_port, self.latents_tokenizer
        if port is not None and tokenizer is not None and port.config.shape != tokenizer.latent_shape:
            raise ValueError(
                f"The model draws latents of {port.config.shape}, the image tokenizer '{LATENTS}' has "
                f"{tokenizer.latent_shape}: give the one that the model was trained with."
            )

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The one whose codes the model reads and draws; of a model without codes that of its latents."""
        return self.image_tokenizers.get(DEFAULT) or self.image_tokenizers[LATENTS]

    @property
    def latents_tokenizer(self) -> ImageTokenizer | None:
        """The one whose latents the model draws by a flow; None where there is none."""
        return self.image_tokenizers.get(LATENTS)

    @property
    def latents_port(self) -> LatentsPort | None:
        """The port by which the model draws by a flow; None where it does not."""
        port = self.model.predicted_ports.get(Kind.LATENTS)
        return port if isinstance(port, LatentsPort) else None

    @property
    def drawing_ways(self) -> tuple[str, ...]:
        """By what the model can draw: "codes", "latents", both in this order, or none."""
        by_codes = ("codes",) if self.model.config.codes is not None else ()
        return (*by_codes, LATENTS) if self.latents_port is not None and self.latents_tokenizer is not None else by_codes

    @property
    def contrastive(self) -> ContrastiveHeads | None:
        """Its contrastive heads, looking through the model's vision tower; None where it has none."""
        head = self.heads.get(CONTRASTIVE)
        return head.with_tower(self.model.pixels.tower) if isinstance(head, ContrastiveHeads) else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> "ModelBundle":
        """Moves every module, in place. Returns itself."""
        for module in (self.model, *self.image_tokenizers.values(), *self.heads.values()):
            module.to(device)
        return self

    def change_dtype(self, dtype: torch.dtype) -> "ModelBundle":
        """Have the weights in a dtype, in place, as `load` with this dtype has them. Returns itself."""
        change_dtype(self.model, self.image_tokenizers.values(), dtype, self.heads.values())
        return self

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        from_pickle: bool = False,
        adapter: str | Path | None = None,
        allow_code: bool = False,
    ) -> "ModelBundle":
        """Read a model folder, a hub id, or "demo"; arguments as `unimm.checkpoints.folder.load_model` has them.

        Raises:
            ValueError: there is no such model or adapter, it cannot be read, or unimm cannot follow what it says.
        """
        bundle = cls.of(load_model(path_or_hub_id, device, dtype, from_pickle, adapter, allow_code))
        if adapter is None:
            return bundle
        return replace(bundle, drawing=read_drawing_defaults(find_folder(adapter), bundle.drawing))

    @classmethod
    def of(cls, loaded: LoadedModel) -> "ModelBundle":
        """The networks of a folder with what it holds beside their weights.

        Raises:
            ValueError: the text tokenizer is missing or does not fit the model, or a convention of the folder is unknown.
        """
        folder = loaded.folder
        tokenizer = TextTokenizer.load(folder)
        rows = loaded.model.text.embedding.num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} ids, the model {rows}: they are not of one model.")
        check_image_preparation(folder)
        return cls(
            loaded.model,
            {_name_of(loaded.image_tokenizer): loaded.image_tokenizer, **loaded.further.image_tokenizers},
            tokenizer,
            read_prompt_format(folder, loaded.config, tokenizer),
            read_drawing_defaults(folder),
            loaded.further.heads,
            read_flow_defaults(loaded.extra, folder),
        )

    def save(
        self,
        path: str | Path,
        max_shard_size: int | str = "5GB",
        notes: str = "",
        write_more: Callable[[Path], object] = lambda folder: None,
    ) -> list[str]:
        """Write the folder: whole or not there. `load` opens it, and `transformers` where the model is a Janus.

        Args:
            notes: Markdown for the model card: recipe, data, scores, licence.
            write_more: is called with the folder before it is moved to its place, for files of the caller's own.

        Returns:
            Why `transformers` cannot open it, part by part; empty where it can.

        Raises:
            ValueError: the path holds something else than a model, or adapters are attached to this one.
        """

        def save_rest(folder: Path) -> None:
            self.tokenizer.save(folder)
            write_more(folder)

        return save_model(
            path,
            self.model,
            self.image_tokenizer,
            self.tokenizer.special,
            extra={"prompt_format": asdict(self.prompt_format), **({"flow": asdict(self.flow)} if self.latents_port else {})},
            drawing=asdict(self.drawing),
            further=FurtherModules(
                {name: one for name, one in self.image_tokenizers.items() if one is not self.image_tokenizer}, self.heads
            ),
            save_tokenizer=save_rest,
            max_shard_size=max_shard_size,
            notes=notes,
        )

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Save and upload to the Hugging Face hub ("user/name"), where the repository is made if need be; gives its address.

        Raises:
            ValueError: nobody is logged in, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return upload_model(Path(folder) / "model", repo_id, private)


def _name_of(image_tokenizer: ImageTokenizer) -> str:
    """The name of the image tokenizer that a folder holds beside its model."""
    return LATENTS if image_tokenizer.is_continuous else DEFAULT


def read_prompt_format(folder: Path, config: Mapping[str, Any], tokenizer: TextTokenizer) -> PromptFormat:
    """How the prompts of a model folder are written. config: its config.json.

    Raises:
        ValueError: it is written in a form that unimm does not have.
    """
    kept = (config.get("unimm") or {}).get("prompt_format")
    if kept is not None:
        try:
            return PromptFormat(**kept)
        except TypeError as error:
            raise ValueError(f"The prompt format in {folder / 'config.json'} is unknown: {error}.") from error
    processor = read_json(folder / "processor_config.json") or {}
    roles = {} if tokenizer.special.user is not None else OLD_ROLES
    if config.get("model_type") == deepseek_config.MODEL_TYPE:
        name = processor.get("sft_format", "deepseek")
        if name not in SFT_FORMATS:
            known = " and ".join(SFT_FORMATS)
            raise ValueError(f"{folder / 'processor_config.json'}: unknown sft_format '{name}', unimm writes {known}.")
        # "deepseek" once meant the old roles; the tokenizer shows which.
        return _format_of({**roles, **SFT_FORMATS[name]}, DEFAULT_SYSTEM_PROMPT)
    if config.get("model_type") == janus_config.MODEL_TYPE:
        system_prompt = DEFAULT_SYSTEM_PROMPT if processor.get("use_default_system_prompt") else ""
        template = _chat_template(folder)
        roles = roles if template is None else _roles_of(template, folder, tokenizer)
        return _format_of(roles, system_prompt)
    return _format_of(roles)


def _format_of(roles: dict[str, str], system_prompt: str = "") -> PromptFormat:
    settings: dict[str, Any] = dict(roles)
    return PromptFormat(**settings, system_prompt=system_prompt)


def check_image_preparation(folder: Path) -> None:
    """ValueError: the folder's image processor prepares images otherwise than every Janus does, to [-1, 1]."""
    # transformers 5 writes one file for the whole processor.
    written = (read_json(folder / "processor_config.json") or {}).get("image_processor")
    written = written or read_json(folder / "preprocessor_config.json") or {}
    half = [0.5, 0.5, 0.5]
    expected = {"image_mean": half, "image_std": half, "do_normalize": True, "do_rescale": True, "do_resize": True}
    for name, value in expected.items():
        if written.get(name, value) != value:
            raise ValueError(
                f"The image processor in {folder}: {name} is {json.dumps(written[name])}, but unimm prepares images "
                f"with {json.dumps(value)}, as every released Janus: correct the file if it is wrong."
            )


def _chat_template(folder: Path) -> str | None:
    """The processor's chat template, where the folder has one; not a tokenizer's own, which may have no images."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return (read_json(folder / "chat_template.json") or {}).get("chat_template")


def _roles_of(template: str, folder: Path, tokenizer: TextTokenizer) -> dict[str, str]:
    """The roles of a chat template, read from a turn that it renders. ValueError: it has not Janus' form."""
    turn = {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]}
    try:
        written = tokenizer.tokenizer.apply_chat_template(
            [turn], chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of its own: jinja2's errors, and whatever it raises itself
        raise ValueError(f"The chat template in {folder} cannot write a user's turn: {error}.") from error
    found = re.fullmatch(r"(.+): QUESTION\n\n(.+):", str(written))
    if found is None:
        raise ValueError(
            f"The chat template in {folder} writes {written!r}, not 'USER: QUESTION\\n\\nASSISTANT:' as a Janus does: "
            f"name the roles under `unimm.prompt_format` (user, assistant, system_prompt) in config.json."
        )
    return {"user": found[1], "assistant": found[2]}
