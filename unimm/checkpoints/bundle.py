"""`ModelBundle`: everything that a model folder holds, in memory. Training, `join`, `average` and `convert` make, change and
save bundles; an `Engine` runs one.

    unified model       images and text in, text and codes out
    image tokenizers    by name; "default" makes the codes that the model draws
    text tokenizer      with the ids of its special tokens
    prompt format       roles and system prompt
    drawing defaults    guidance scale, temperature, top_k, top_p
    heads               further modules by name, such as the projections of a contrastive loss
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from unimm.checkpoints.folder import LoadedModel, change_dtype, load_model, save_model
from unimm.checkpoints.further_modules import FurtherModules
from unimm.checkpoints.hub import upload_model
from unimm.checkpoints.prompt_conventions import (
    DrawingDefaults,
    check_image_preparation,
    read_drawing_defaults,
    read_prompt_format,
)
from unimm.data.template import PromptFormat
from unimm.data.text import TextTokenizer
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.unified import UnifiedModel

DEFAULT = "default"
"""The name of the image tokenizer whose codes a model reads and draws."""


@dataclass(frozen=True)
class ModelBundle:
    """A model with all that is needed to use it, train it on, and save it. Frozen: change one with `dataclasses.replace`.

    model, image_tokenizers, heads: on one device. A head has a `config`, a dataclass whose `build()` makes such a head.
    tokenizer: the text tokenizer.
    drawing: how it draws where a caller does not say.
    """

    model: UnifiedModel
    image_tokenizers: Mapping[str, ImageTokenizer]
    tokenizer: TextTokenizer
    prompt_format: PromptFormat = field(default_factory=PromptFormat)
    drawing: DrawingDefaults = field(default_factory=DrawingDefaults)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if DEFAULT not in self.image_tokenizers:
            names = ", ".join(self.image_tokenizers) or "none"
            raise ValueError(f"A model draws with the image tokenizer '{DEFAULT}', and this bundle has {names}: name one so.")

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The one whose codes the model reads and draws."""
        return self.image_tokenizers[DEFAULT]

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
        return cls.of(load_model(path_or_hub_id, device, dtype, from_pickle, adapter, allow_code))

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
            {DEFAULT: loaded.image_tokenizer, **loaded.further.image_tokenizers},
            tokenizer,
            read_prompt_format(folder, loaded.config, tokenizer),
            read_drawing_defaults(folder),
            loaded.further.heads,
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
            extra={"prompt_format": asdict(self.prompt_format)},
            drawing=asdict(self.drawing),
            further=FurtherModules({name: one for name, one in self.image_tokenizers.items() if name != DEFAULT}, self.heads),
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
