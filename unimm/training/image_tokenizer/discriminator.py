"""The discriminator of VQGAN: a PatchGAN with the hinge loss. When it starts and what it weighs are the trainer's settings
(conf/tokenizer_trainer/gan.yaml).

PatchGAN from pix2pix (arXiv 1611.07004), hinge loss from arXiv 1705.02894, the adaptive weight from VQGAN (arXiv 2012.09841):
the generator's adversarial loss is scaled so that its gradient at the decoder's last layer is as long as the reconstruction's.
GroupNorm stands where the originals have BatchNorm: no statistics to share between processes, and none to save.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from unimm.models.image_tokenizer.layers import GroupNorm
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training.checkpoint import optimizer_tensors, restore_optimizer
from unimm.training.finite import spread
from unimm.training.optimizers import AdamW, step_if_finite


@dataclass(frozen=True)
class AdversaryConfig:
    """start_step: from this step on there is an adversary. weight: of its loss, after adaptive scaling if `adaptive`."""

    start_step: int = 20_000
    weight: float = 0.5
    adaptive: bool = True
    channels: int = 64
    num_layers: int = 3
    lr: float = 1e-4

    def __post_init__(self) -> None:
        check_whole(self, 0, "start_step")
        check_whole(self, 1, "channels", "num_layers")
        check_number(self, "weight")
        check_number(self, "lr", above=0)


class Adversary:
    """A discriminator and its optimizer, from a given step on a player against the tokenizer."""

    def __init__(self, config: AdversaryConfig, accelerator: Accelerator, betas: tuple[float, float]) -> None:
        self.config, self._accelerator = config, accelerator
        self.discriminator = PatchDiscriminator(config.channels, config.num_layers).to(accelerator.device)
        self._wrapped = accelerator.prepare(self.discriminator)
        self.optimizer = AdamW(self.discriminator.parameters(), lr=config.lr, betas=betas, weight_decay=0.0)
        self._names = {id(p): name for name, p in self.discriminator.named_parameters()}

    def generator_loss(self, drawn_NCHW: Tensor, reconstruction: Tensor, last_weight: Tensor) -> dict[str, Tensor]:
        """What the tokenizer is to add to its loss ("adversarial"), and the adaptive weight in it."""
        # Unwrapped and without gradients of its own: the tokenizer's step must neither move nor synchronise it.
        self.discriminator.requires_grad_(False)
        with self._accelerator.autocast():
            loss = generator_loss(self.discriminator(drawn_NCHW))
        self.discriminator.requires_grad_(True)
        if not self.config.adaptive:
            return {"adversarial": self.config.weight * loss}
        scale = adaptive_weight(reconstruction, loss, last_weight)
        return {"adversarial": self.config.weight * scale * loss, "adaptive_weight": scale}

    def learn(self, real_NCHW: Tensor, drawn_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of its own, on detached reconstructions; gives its loss and their norm. `step` follows them."""
        logits = self._wrapped(torch.cat([real_NCHW, drawn_NCHW.to(real_NCHW.dtype)]))
        loss = discriminator_loss(*logits.chunk(2))
        self._accelerator.backward(spread(loss))
        norm = nn.utils.get_total_norm([p.grad for p in self.discriminator.parameters() if p.grad is not None])
        return loss.detach(), norm

    def step(self, norm: Tensor) -> None:
        """One update of its own, unless the norm of the step's gradients is not finite."""
        step_if_finite(self.optimizer, norm)
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Its state for a checkpoint."""
        weights = {f"discriminator/{name}": tensor for name, tensor in self.discriminator.state_dict().items()}
        return weights | optimizer_tensors(self.optimizer, self._names, "adversary")

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; a checkpoint from before there was an adversary leaves it fresh."""
        prefix = "discriminator/"
        weights = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        if weights:
            self.discriminator.load_state_dict(weights)
            restore_optimizer(self.optimizer, tensors, self._names, "adversary")


class PatchDiscriminator(nn.Module):
    """Pixels (N, 3, H, W) to one logit a patch (N, 1, h, w), positive for real; strides of 2 in `num_layers` layers."""

    def __init__(self, channels: int = 64, num_layers: int = 3):
        super().__init__()
        widths = [channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer, (wide_in, wide_out) in enumerate(pairwise(widths), start=1):
            stride = 2 if layer < num_layers else 1
            layers += [nn.Conv2d(wide_in, wide_out, 4, stride=stride, padding=1, bias=False), GroupNorm(8, wide_out)]
            layers.append(nn.LeakyReLU(0.2))
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self.main(pixels_NCHW)


def discriminator_loss(real_logits: Tensor, drawn_logits: Tensor) -> Tensor:
    """Hinge: real patches above 1, drawn ones below -1."""
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + drawn_logits.float()).mean())


def generator_loss(drawn_logits: Tensor) -> Tensor:
    """The drawn patches should look real."""
    return -drawn_logits.float().mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor) -> Tensor:
    """What to scale the adversarial loss by, so that both pull equally at the decoder's last weight; at most 10,000."""
    (by_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (by_adversary,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    return (by_reconstruction.norm() / (by_adversary.norm() + 1e-4)).clamp(0, 1e4).detach()
