"""From a composed configuration to a mixture: its sources, and their weights, which may change by step."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from unimm.cli.compose import build
from unimm.cli.hydra_errors import SOURCE_KEYS
from unimm.data.mixing_weights import Weight, read_weight
from unimm.data.mixture import Mixture, Source
from unimm.data.records import Dataset
from unimm.data.template import Template


def check_sources(config: DictConfig) -> None:
    """Raises ValueError where a source lacks what every source has, such as a new one of which only a weight is given."""
    for name, source in config.data.sources.items():
        lacking = [key for key in SOURCE_KEYS if key not in source]
        if lacking:
            raise ValueError(
                f"The source '{name}' has no {' and no '.join(lacking)}: a new one needs {', '.join(SOURCE_KEYS)}; there is "
                f"{', '.join(other for other in config.data.sources if other != name)}."
            )


def build_mixture(config: DictConfig, datasets: dict[str, Dataset], template: Template) -> Mixture:
    """The sources, seen through their views and mixed by weight, and their tasks by ratio where one is given.

    Raises:
        ValueError: weights, or the ratio, are none.
    """
    num_steps = OmegaConf.select(config, "trainer.budget.max_steps")

    def weight(name: str, value: Any) -> Weight:
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return read_weight(name, plain, num_steps)

    sources = [
        Source(str(name), datasets[str(name)], build(source.view), weight(f"data.sources.{name}.weight", source.weight))
        for name, source in config.data.sources.items()
    ]
    ratio = None if config.ratio is None else {str(task): weight(f"ratio.{task}", config.ratio[task]) for task in config.ratio}
    return Mixture(sources, template, config.seed, config.data.weigh_by, config.get("max_bad") or 0.0, ratio)
