"""The port of LATENTS: an image written as continuous latents, all at once, by a rectified flow through the trunk
(JanusFlow, arXiv 2411.07975; rectified flow: arXiv 2209.03003).

    x_t = t x_1 + (1 - t) x_0    x_1: the image's latents, x_0: noise; the velocity x_1 - x_0 is what is learned

An image takes 1 + h w positions: the first one holds the time (JanusFlow has it in place of begin-of-image), each of
the others is a patch of the latents. As elements they are an array (1 + h w, C p p): row 0 holds, in its first number, the key
that the image's noise and time are drawn by while it is learned, a whole number below 2**24, and zeros; the other rows hold the
patches of x_1, row by row. So noise belongs to the data: a packed row, a batch and a resumed training have the same.

Attention stays the trunk's, causal: in the Transformer a patch sees those above and on its left; the adapters' convolutions
see all of them (JanusFlow's code has it so, too). An image that is given, not learned, is read at t = 1.

The loss looks at the encoder's features once more instead of carrying them from `embed`: its share of a step is below 1 % at
JanusFlow's size, and nothing has to be kept between two calls.

Shapes: I images, n = I (1 + h w) positions, C channels, H W of the latents, p patch size, E = C p p numbers an element, D trunk
width, G branches of guidance.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from unimm.batch import Batch, Elements
from unimm.models.ports.base import LossSums, PredictedPort
from unimm.models.ports.flow_adapters import FlowDecoder, FlowEncoder
from unimm.runtime.counter_noise import normal, stream_key
from unimm.runtime.number_checks import check_number, check_whole, whole_number
from unimm.segment import latent_elements
from unimm.sequence import Kind, Segment

SOLVERS = ("euler", "heun")


@dataclass(frozen=True)
class LatentsConfig:
    """The latents that a model writes, and the adapters around its trunk. Defaults are JanusFlow's, of 384 px by a tokenizer of
    1/8.

    channels, latent_size: the latents of an image are (channels, latent_size, latent_size).
    patch_size: so many of them by as many are a position.
    width, num_blocks: of the adapters; the decoder's blocks are twice as wide.
    time_mean, time_std: while it learns, the time is the logistic function of a number with this mean and standard deviation
        (arXiv 2403.03206).
    hides_null_prompt: while it draws, what guidance drops from the prompt is hidden from the image, as in JanusFlow's demo;
        else it is read as pads, as this trainer teaches it.
    """

    channels: int = 4
    latent_size: int = 48
    patch_size: int = 2
    width: int = 768
    num_blocks: int = 2
    time_mean: float = 0.0
    time_std: float = 1.0
    hides_null_prompt: bool = False

    def __post_init__(self) -> None:
        check_whole(self, 1, "channels", "latent_size", "patch_size", "width", "num_blocks")
        check_number(self, "time_std")
        if self.latent_size % self.patch_size:
            raise ValueError(f"latent_size {self.latent_size} is not a multiple of patch_size {self.patch_size}.")
        if self.width % 2:
            raise ValueError(f"The adapters' width is even, for sines and cosines of the time, not {self.width}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image."""
        return self.channels, self.latent_size, self.latent_size

    @property
    def grid_size(self) -> int:
        """Patches along one side of an image."""
        return self.latent_size // self.patch_size

    @property
    def num_elements(self) -> int:
        """Positions that an image takes: its patches, and one for the time."""
        return 1 + self.grid_size**2

    @property
    def element_size(self) -> int:
        """Numbers of an element."""
        return self.channels * self.patch_size**2

    def build(self, width: int) -> "LatentsPort":
        """The port, for a trunk of this width."""
        return LatentsPort(self, width)

    def to_elements(self, latents: np.ndarray, key: int = 0) -> np.ndarray:
        """Latents (C, H, W) as elements (1 + h w, E) float32. key: of the noise and the time that they are learned with.

        Raises:
            ValueError: they are of another shape.
        """
        if latents.shape != self.shape:
            raise ValueError(f"The model writes latents of {self.shape}, not {latents.shape}: encode the images anew.")
        return latent_elements(latents, self.patch_size, whole_number("key", key, 0))

    def to_latents(self, elements: Tensor) -> Tensor:
        """Elements (..., 1 + h w, E) to latents (..., C, H, W)."""
        size = {"h": self.grid_size, "p": self.patch_size, "q": self.patch_size}
        return rearrange(elements[..., 1:, :], "... (h w) (c p q) -> ... c (h p) (w q)", **size)


class LatentsPort(PredictedPort):
    """Latents in and out: encoder and decoder with a skip between them, each with a linear map to and from the trunk."""

    kind = Kind.LATENTS
    hidden_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: LatentsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.element_shape = (config.element_size,)
        sizes = (config.channels, config.patch_size, config.width, config.num_blocks, width)
        self.encoder, self.decoder = FlowEncoder(*sizes), FlowDecoder(*sizes)
        self.encoder_aligner = nn.Linear(config.width, width)
        self.decoder_norm = nn.RMSNorm(width, 1e-6)
        self.decoder_aligner = nn.Linear(width, config.width)

    # -- the pieces of one pass ---------------------------------------------------------------------------------------

    def encode(self, latents_ICHW: Tensor, times_I: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and their times to features (I, width, h, w) and the embedded times (I, D)."""
        return self.encoder(latents_ICHW, times_I)

    def enter(self, features_IEhw: Tensor, time_ID: Tensor) -> Tensor:
        """What the trunk reads, (I, 1 + h w, D): the time, then the patches."""
        patches_ITD = self.encoder_aligner(features_IEhw.flatten(2).transpose(1, 2))
        return torch.cat([time_ID[:, None].to(patches_ITD.dtype), patches_ITD], dim=1)

    def velocity(self, hidden_ITD: Tensor, features_IEhw: Tensor, time_ID: Tensor) -> Tensor:
        """(I, C, H, W) float32, of the trunk's states (I, 1 + h w, D)."""
        states_ITE = self.decoder_aligner(self.decoder_norm(hidden_ITD[:, 1:]))
        states_IEhw = states_ITE.transpose(1, 2).unflatten(2, (self.config.grid_size, self.config.grid_size))
        return self.decoder(states_IEhw.to(features_IEhw.dtype), features_IEhw, time_ID).float()

    # -- learning -----------------------------------------------------------------------------------------------------

    def embed(self, content: Elements) -> Tensor:
        values_ITE, weights_IT = self._by_image(content.values), self._by_image(content.weights)
        latents_ICHW, times_I, _ = self._noisy(values_ITE, weights_IT[:, 0] != 0)
        return self.enter(*self.encode(latents_ICHW, times_I)).flatten(0, 1)

    def loss(self, hidden_nD: Tensor, targets: Tensor, weights_n: Tensor) -> LossSums:
        """Squared errors of the velocity, each element's the mean over its numbers; the place of the time counts for none."""
        values_ITE, weights_IT = self._by_image(targets), self._by_image(weights_n)
        latents_ICHW, times_I, velocity_ICHW = self._noisy(values_ITE, torch.ones_like(weights_IT[:, 0], dtype=torch.bool))
        predicted_ICHW = self.velocity(self._by_image(hidden_nD), *self.encode(latents_ICHW, times_I))
        patch = self.config.patch_size
        errors_IHW = (predicted_ICHW - velocity_ICHW).square().mean(1)
        errors_It = rearrange(errors_IHW, "i (h p) (w q) -> i (h w) p q", p=patch, q=patch).mean((2, 3))
        loss = (weights_IT[:, 1:] * errors_It).sum()
        return LossSums(loss, loss.new_full((), float("nan")), weights_IT[:, 1:].sum())  # a velocity is not right or wrong

    def num_targets(self, batch: Batch) -> Tensor:
        elements = batch.contents.get(self.kind)
        if elements is None:
            return batch.weights.new_zeros(())
        return self._by_image(elements.weights)[:, 1:].sum()

    def check(self, segment: Segment) -> None:
        num_elements = self.config.num_elements
        if segment.is_open:
            if segment.length != num_elements or segment.num_known:
                known = f", {segment.num_known} of them known" if segment.num_known else ""
                raise ValueError(
                    f"The model writes an image as {num_elements} elements of LATENTS, not as {segment.length}{known}."
                )
            return
        super().check(segment)
        if segment.length != num_elements:
            raise ValueError(f"An image of LATENTS has {num_elements} elements here, not {segment.length}.")
        if np.ndim(segment.weight) and len(np.unique(segment.weight)) > 1:
            raise ValueError("The latents of an image are learned all at once: give them one weight, not one for each element.")

    def _by_image(self, values: Tensor) -> Tensor:
        """(n, ...) -> (I, 1 + h w, ...)."""
        return values.unflatten(0, (len(values) // self.config.num_elements, self.config.num_elements))

    def _noisy(self, values_ITE: Tensor, is_learned_I: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents x_t, times and velocities x_1 - x_0 of images; x_1 at t = 1 of those that are not learned."""
        images_ICHW = self.config.to_latents(values_ITE.float())
        keys_I = noise_keys(values_ITE[:, 0, 0].long())
        noise_ICHW = normal(keys_I, images_ICHW[0].numel() if len(images_ICHW) else 1).reshape(images_ICHW.shape)
        logit_I = self.config.time_mean + self.config.time_std * normal(noise_keys(keys_I), 1)[:, 0]
        times_I = torch.where(is_learned_I, logit_I.sigmoid(), 1.0)
        at_I111 = times_I[:, None, None, None]
        return at_I111 * images_ICHW + (1 - at_I111) * noise_ICHW, times_I, images_ICHW - noise_ICHW

    # -- filling in ---------------------------------------------------------------------------------------------------

    def filler(
        self, blank: Segment, key: tuple[int, int], num_steps: int = 30, solver: str = "euler", **settings: Any
    ) -> "FlowFiller":
        """num_steps: equal steps from noise to image. solver: "euler", a pass a step; "heun", two."""
        if settings:
            raise ValueError(f"A flow has num_steps and solver, and no {', '.join(settings)}.")
        return FlowFiller(self, stream_key(*key), whole_number("num_steps", num_steps, 1), solver)

    def parts(self) -> dict[str, nn.Module]:
        return {
            "latents_in": nn.ModuleList([self.encoder, self.encoder_aligner]),
            "latents_out": nn.ModuleList([self.decoder_norm, self.decoder_aligner, self.decoder]),
        }

    def path(self) -> list[nn.Module]:
        return [self.parts()["latents_in"]]

    def head_path(self) -> list[nn.Module]:
        return [self.parts()["latents_out"]]

    @property
    def hides_dropped(self) -> bool:
        """As its config says (`hides_null_prompt`)."""
        return self.config.hides_null_prompt


class FlowFiller:
    """One image on its way from noise: an ordinary differential equation, dx/dt = velocity(x, t), in equal steps.

    Guidance sums the velocities of all branches. All of it but the trunk runs for one image at a time, so the image does not
    depend on what else is drawn, but for rounding in the trunk.

    estimate: what the image will be, as far as is known: x + (1 - t) velocity, as elements (1 + h w, E); None before the first
        pass. num_passes: done so far, of `total_passes`.
    """

    def __init__(self, port: LatentsPort, key: int, num_steps: int, solver: str) -> None:
        if solver not in SOLVERS:
            raise ValueError(f"solver is {' or '.join(SOLVERS)}, not '{solver}'.")
        self._port, self._num_steps, self._solver = port, num_steps, solver
        config, device = port.config, next(port.parameters()).device
        shape = (1, config.channels, config.latent_size, config.latent_size)
        self._x = normal(torch.tensor([key], device=device), config.channels * config.latent_size**2).view(shape)
        self._step, self._slope, self.num_passes = 0, None, 0
        self._features: tuple[Tensor, Tensor] | None = None
        self.estimate: Tensor | None = None
        self.content: Any = None

    @property
    def total_passes(self) -> int:
        """Passes of the Transformer that it takes."""
        return num_passes(self._num_steps, self._solver)

    @property
    def is_done(self) -> bool:
        return self.content is not None

    @property
    def _at(self) -> tuple[Tensor, float]:
        """Where the next velocity is asked for: latents and time."""
        if self._slope is None:
            return self._x, self._step / self._num_steps
        return self._x + self._slope / self._num_steps, (self._step + 1) / self._num_steps

    def inputs(self) -> Tensor:
        latents_1CHW, time = self._at
        self._features = self._port.encode(latents_1CHW, latents_1CHW.new_full((1,), time))
        return self._port.enter(*self._features)[0]

    def advance(self, hidden_GnD: Tensor, weights_G: Tensor) -> None:
        assert self._features is not None
        features_1Ehw, time_1D = self._features
        num_branches = len(hidden_GnD)
        each = features_1Ehw.expand(num_branches, -1, -1, -1), time_1D.expand(num_branches, -1)
        velocity_GCHW = self._port.velocity(hidden_GnD, *each)
        velocity_1CHW = (weights_G[:, None, None, None] * velocity_GCHW).sum(0, keepdim=True)
        latents_1CHW, time = self._at
        self.estimate, self.num_passes = self._elements(latents_1CHW + (1 - time) * velocity_1CHW), self.num_passes + 1
        if self._solver == "heun" and self._slope is None:
            self._slope = velocity_1CHW
            return
        slope_1CHW = velocity_1CHW if self._slope is None else (self._slope + velocity_1CHW) / 2
        self._x, self._slope, self._step = self._x + slope_1CHW / self._num_steps, None, self._step + 1
        if self._step == self._num_steps:
            self.content = self._elements(self._x).cpu().numpy()

    def _elements(self, latents_1CHW: Tensor) -> Tensor:
        size = {"p": self._port.config.patch_size, "q": self._port.config.patch_size}
        patches_TE = rearrange(latents_1CHW[0].float(), "c (h p) (w q) -> (h w) (c p q)", **size)
        return torch.cat([patches_TE.new_zeros(1, patches_TE.shape[1]), patches_TE])


def num_passes(num_steps: int, solver: str) -> int:
    """Passes of the Transformer that so many steps take."""
    return num_steps * (2 if solver == "heun" else 1)


def noise_keys(keys_I: Tensor) -> Tensor:
    """Keys (I,) long that are far from each other, of whole numbers that may be neighbours."""
    return keys_I * 0x5851F42D4C957F2D + 0x14057B7EF767814F
