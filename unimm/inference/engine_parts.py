"""What an engine's calls work with: the model and its tokenizers, the prompt template, the decode loop, the image coder."""

from collections.abc import Callable

import torch

from unimm.checkpoints.bundle import ModelBundle
from unimm.data.template import Template
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.workload import Limits
from unimm.inference.image_codec import ImageCoder


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
        self.deterministic = deterministic
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
