"""Projectors carry patch features (N, P, C) into the trunk, (N, P', D). Source: Janus (arXiv 2410.13848).

Shapes: N images, P patches, C vision width, P' positions an image takes, D trunk width.
"""

from dataclasses import dataclass

from torch import nn

from unimm.runtime.number_checks import check_whole


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


class MLP(nn.Sequential):
    """`depth` linear layers with exact GELU between them: Janus' aligners of both ports."""

    def __init__(self, width_in: int, width_out: int, depth: int = 2) -> None:
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        super().__init__(*layers)


PROJECTORS = {"mlp": lambda config, width_in, width_out: MLP(width_in, width_out, config.depth)}
"""Projectors by name: (config, vision width, trunk width) -> module (N, P, C) -> (N, P', D)."""


def build_projector(config: ProjectorConfig, vision_width: int, trunk_width: int) -> nn.Module:
    """The projector that the config names.

    Raises:
        ValueError: the name is none of `PROJECTORS`.
    """
    if config.kind not in PROJECTORS:
        raise ValueError(f"Unknown projector '{config.kind}': use one of {', '.join(sorted(PROJECTORS))}.")
    return PROJECTORS[config.kind](config, vision_width, trunk_width)
