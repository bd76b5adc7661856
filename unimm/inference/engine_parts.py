"""What an engine's calls work with: the model and its tokenizers, the prompt template, the decode loop, the image coder."""

from collections.abc import Callable
from typing import Any

import torch

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.fingerprint import model_fingerprint
from unimm.data.template import Template
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.workload import Limits
from unimm.inference.image_codec import ImageCoder
from unimm.inference.kernels.llama_decode import weight_versions


class EngineParts:
    """A model with all that its calls need.

    Args:
        bundle: the model with its tokenizers and conventions, in eval mode, on its device.
        limits: how much it decodes at once, and how much may wait.
        weights, deterministic: as `Decoder` and `ImageCoder` have them.
        is_stopped: called before every step of decoding; once it returns True, whatever is being filled ends with `Stopped`.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        limits: Limits | None = None,
        weights: str | None = None,
        deterministic: bool = False,
        is_stopped: Callable[[], bool] | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model = bundle.model
        self.image_tokenizer = bundle.image_tokenizer
        self.prompt_format = bundle.prompt_format
        self.drawing = bundle.drawing
        self.deterministic, self.weights = deterministic, weights
        self._hash: tuple[Any, str] = (None, "")
        self.coder = ImageCoder(self.image_tokenizer, alone=deterministic, weights=weights)
        vision = model.config.vision
        self.template = Template(
            bundle.tokenizer,
            self.prompt_format,
            vision.image_size,
            model.num_image_positions,
            lambda image: self.coder.encode([image])[0].numpy(),
        )
        self.tokenizer = self.template.tokenizer  # it shows no roles
        self.decoder = Decoder(model, bundle.tokenizer.special.pad, limits, weights, deterministic, is_stopped)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def model_hash(self) -> str:
        """sha256 over names, dtypes, shapes and some numbers of each weight of the model and its image tokenizer: another one
        where the model was trained on, or is kept in another dtype."""
        versions = weight_versions(self.model)
        if self._hash[0] != versions:
            weights = [*self.model.named_parameters(), *self.image_tokenizer.named_parameters("image_tokenizer")]
            self._hash = (versions, model_fingerprint(weights))
        return self._hash[1]
