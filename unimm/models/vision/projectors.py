"""Projectors carry patch features (N, P, C) into the trunk, (N, P', D). Source: Janus (arXiv 2410.13848).

One of another package is named in a model's config by its own config class (`_target_`), a `ProjectorSettings`.

Shapes: N images, P patches, C vision width, P' positions an image takes, D trunk width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from unimm.runtime.number_checks import check_whole


class Projector(Protocol):
    """A module (N, P, C) -> (N, P', D), also of no images, that says how many positions an image takes."""

    def num_positions(self, num_patches: int) -> int:
        """P' of an image of so many patches: what prompts, packing and the engine plan with."""
        ...

    def __call__(self, features_NPC: Tensor) -> Tensor: ...


class ProjectorSettings(Protocol):
    """What a model needs of a projector's config, a frozen dataclass whose fields are JSON."""

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector, a `Projector`, from vision width C to trunk width D."""
        ...


@dataclass(frozen=True)
class ProjectorConfig:
    """How patch features become trunk embeddings.

    kind: "mlp" (Janus' own: `depth` linear layers with GELU between them).
    depth: number of linear layers; 1 is a plain linear projector.
    """

    kind: str = "mlp"
    depth: int = 2

    def __post_init__(self) -> None:
        check_whole(self, 1, "depth")

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector.

        Raises:
            ValueError: the name is none of `PROJECTORS`.
        """
        if self.kind not in PROJECTORS:
            raise ValueError(
                f"Unknown projector '{self.kind}': use one of {', '.join(sorted(PROJECTORS))}, or the config class of your own "
                f"(model.projector._target_)."
            )
        return PROJECTORS[self.kind](self, vision_width, trunk_width)


class MLP(nn.Sequential):
    """`depth` linear layers with exact GELU between them: Janus' aligners of both ports. A position a patch."""

    def __init__(self, width_in: int, width_out: int, depth: int = 2) -> None:
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        super().__init__(*layers)

    def num_positions(self, num_patches: int) -> int:
        """As many as patches."""
        return num_patches


PROJECTORS = {"mlp": lambda config, width_in, width_out: MLP(width_in, width_out, config.depth)}
"""Our projectors by name: (config, vision width, trunk width) -> `Projector`."""
