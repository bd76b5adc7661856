"""What an engine's calls work with: the model and its tokenizers, the prompt template, the decode loop, and the image coder,
which makes pictures of codes and codes of pictures.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.fingerprint import model_fingerprint
from unimm.data.grids import Grid
from unimm.data.image import crop, to_pil
from unimm.data.records import LATENTS, ImageLike
from unimm.data.template import Template, Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits, Stats
from unimm.inference.kernels.llama_decode import weight_versions
from unimm.models.image_tokenizer.int8_convolution import gains_from_integers, with_integer_decoder
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.sequence import Kind

AT_ONCE = 64
"""Images in one go, at most."""

SLOTS_AHEAD = 256
"""Of a prompt, for which steps are captured before they are asked for."""

PIXELS_ON_CPU = 2 * 384 * 384
"""On a CPU, of all images in one go: more only take more memory."""


class EngineParts:
    """A model with all that its calls need.

    Args:
        bundle: the model with its tokenizers and conventions, in eval mode, on its device.
        limits: how much it decodes at once, and how much may wait.
        weights, deterministic, kernels: as `Decoder` and `ImageCoder` have them.
        is_stopped: called before every step of decoding; once it returns True, whatever is being filled ends with `Stopped`.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        limits: Limits | None = None,
        weights: str | None = None,
        deterministic: bool = False,
        is_stopped: Callable[[], bool] | None = None,
        kernels: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = model = bundle.model
        self.image_tokenizer = bundle.image_tokenizer
        self.prompt_format = bundle.prompt_format
        self.drawing = bundle.drawing
        self.deterministic, self.weights = deterministic, weights
        self._hash: tuple[Any, str] = (None, "")
        self.coder = ImageCoder(self.image_tokenizer, alone=deterministic, weights=weights)
        latents, port = bundle.latents_tokenizer, bundle.latents_port
        self.latents_coder = None if latents is None else ImageCoder(latents, alone=deterministic)
        vision = model.config.vision
        self.template = Template(
            bundle.tokenizer,
            self.prompt_format,
            vision.image_size,
            model.num_image_positions,
            lambda image: self.coder.encode([image])[0].numpy(),
            latent_patch=None if port is None else port.config.patch_size,
        )
        self.tokenizer = self.template.tokenizer  # it shows no roles
        self.decoder = Decoder(model, bundle.tokenizer.special.pad, limits, weights, deterministic, is_stopped, kernels)
        if kernels == "triton":
            self.capture_steps()

    def capture_steps(self) -> int:
        """On a GPU, record steps of drawings and of greedy texts in all sizes (CUDA graphs), so that few requests wait for one;
        returns how many. Mixtures of them, and windows that are cut short, are recorded when they first come.
        Done when the engine is made, where it has Triton's kernels."""
        drawing, num_codes = self.drawing, self.image_tokenizer.num_codes
        requests = [Request(self.template.chat([Turn("user", ("a",))], SLOTS_AHEAD).opened())]
        if Kind.CODES in self.model.vocabulary_ports:
            sampling = Sampling(drawing.temperature, drawing.top_k, drawing.top_p)
            requests.append(Request(self.template.draw("a", num_codes=num_codes), sampling, drawing.guidance_scale))
        return self.decoder.capture(requests, num_codes + SLOTS_AHEAD)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def stats(self) -> Stats:
        """What it is decoding now, and totals: requests, rows, memory, steps, codes a step, and how many guesses were right."""
        return self.decoder.stats()

    def num_drawn_positions(self, drawing: str | None = None) -> int:
        """Positions of an image that is drawn so: its codes, or its patches of latents. None: as where nothing is said."""
        way = drawing or next(iter(self.bundle.drawing_ways), None)
        if way == LATENTS and self.bundle.latents_port is not None:
            return self.bundle.latents_port.config.num_elements - 1
        return self.image_tokenizer.num_codes

    @property
    def model_hash(self) -> str:
        """sha256 over names, dtypes, shapes and some numbers of each weight of the model and its image tokenizer: another one
        where the model was trained on, or is kept in another dtype."""
        versions = weight_versions(self.model)
        if self._hash[0] != versions:
            weights = [*self.model.named_parameters(), *self.image_tokenizer.named_parameters("image_tokenizer")]
            for name, tokenizer in self.bundle.image_tokenizers.items():
                if tokenizer is not self.image_tokenizer and name == LATENTS:
                    weights += tokenizer.named_parameters(name)
            self._hash = (versions, model_fingerprint(weights))
        return self._hash[1]


class ImageCoder:
    """An image tokenizer in use: codes to pictures and pictures to codes, a few at a time, on its device.

    Args:
        alone: one image at a time, for batch invariance. In float32 on a CPU it is so in any case: sums
            are split otherwise in a batch, and pixels would differ by a level.
        weights: "int8": decode in integers where a CPU gains from it (`int8_convolution`); all else changes nothing.
    """

    def __init__(self, tokenizer: ImageTokenizer, alone: bool = False, weights: str | None = None) -> None:
        self.tokenizer = self._drawer = tokenizer
        self.grid = Grid(tokenizer.grid_size, tokenizer.grid_size)
        if weights == "int8" and not tokenizer.is_continuous and gains_from_integers(tokenizer):
            self._drawer, alone = with_integer_decoder(tokenizer), True
        on_cpu = self._device.type == "cpu"
        alone = alone or (on_cpu and next(tokenizer.parameters()).dtype == torch.float32)
        fitting = max(1, PIXELS_ON_CPU // tokenizer.image_size**2) if on_cpu else AT_ONCE
        self._at_once = 1 if alone else min(fitting, AT_ONCE)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        if self._stream is not None:  # weights may still be on their way
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def sized(self, grid: Grid) -> "ImageCoder":
        """The same for images of another grid of codes."""
        if grid == self.grid:
            return self
        other = copy.copy(self)
        other.grid = grid
        return other

    @property
    def has_own_stream(self) -> bool:
        """Whether it works beside other work of its device."""
        return self._stream is not None

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> list[Image.Image]:
        """codes (num_images, num_codes) or (num_codes,) -> PIL images. From any thread; on a GPU beside what runs there.

        Raises:
            ValueError: a code is outside the codebook, or their number is not that of an image.
        """
        codes = torch.as_tensor(codes)
        if len(codes) and (codes.is_floating_point() or codes.dtype == torch.bool):
            raise ValueError(f"Codes are whole numbers, not {codes.dtype}.".replace("torch.", ""))
        codes = codes.long()
        codes = codes[None] if codes.dim() == 1 else codes
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.tokenizer.codebook_size:
            raise ValueError(f"Codes lie in [0, {self.tokenizer.codebook_size}), not {int(codes.min())} to {int(codes.max())}.")
        images: list[Image.Image] = []
        if not len(codes):
            return images
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            for part in codes.split(self._at_once):
                pixels = self._drawer.decode(part.to(self._device), self.grid).float().clamp(-1, 1).cpu().numpy()
                images += [to_pil(image) for image in pixels]
        return images

    @torch.inference_mode()
    def decode_latents(self, latents_NChw: torch.Tensor) -> list[Image.Image]:
        """Latents (num_images, C, h, w), or (C, h, w), as `ImageTokenizer.encode_latents` gives them -> PIL images.

        Raises:
            ValueError: they are of another shape, or the image tokenizer has codes.
        """
        latents_NChw = latents_NChw[None] if latents_NChw.dim() == 3 else latents_NChw
        images: list[Image.Image] = []
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            for part in latents_NChw.split(self._at_once):
                pixels = self._drawer.draw_latents(part.to(self._device)).float().clamp(-1, 1).cpu().numpy()
                images += [to_pil(image) for image in pixels]
        return images

    @torch.inference_mode()
    def encode(self, images: list[ImageLike]) -> torch.Tensor:
        """Images -> codes (n, num_codes) long on the CPU; the largest part at the centre that has the form, resized."""
        return torch.cat(
            [torch.empty(0, self.grid.num_codes, dtype=torch.long)]
            + [self.tokenizer.encode(pixels, self.grid).cpu() for pixels in self._batches(images)]
        )

    @torch.inference_mode()
    def encode_latents(self, images: list[ImageLike]) -> torch.Tensor:
        """Images -> latents (n, C, h, w) float32 on the CPU; short side to size, centre crop. ValueError: it has codes."""
        return torch.cat(
            [torch.empty(0, *self.tokenizer.latent_shape)]
            + [self.tokenizer.encode_latents(pixels).cpu() for pixels in self._batches(images)]
        )

    def _batches(self, images: list[ImageLike]) -> Iterator[torch.Tensor]:
        """Pixels (N, 3, H, W) of a few images at a time, on the device, in the tokenizer's dtype."""
        dtype, pixels_a_code = next(self.tokenizer.parameters()).dtype, self.tokenizer.config.downsampling
        size = (self.grid.rows * pixels_a_code, self.grid.columns * pixels_a_code)
        for start in range(0, len(images), self._at_once):
            part = images[start : start + self._at_once]
            pixels = torch.from_numpy(np.stack([crop(image, size) for image in part]))
            yield pixels.to(self._device, dtype)

    @property
    def _device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device
