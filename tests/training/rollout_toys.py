"""What tests of rollouts share: a trainer of the tiny model on toy prompts, and rewards of drawings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_image_tokenizer
from toys import Squares, make_config, make_model, make_template

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.mixture import Mixture, Source
from unimm.data.prompts import DrawingPrompt, QuestionPrompt
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.rewards.response import Response
from unimm.rewards.rollouts import RolloutMaker, show_rollouts
from unimm.training.objectives.grpo import GRPO
from unimm.training.optimizers import OptimizerConfig
from unimm.training.rollout_trainer import RolloutTrainer
from unimm.training.rollouts import RolloutConfig
from unimm.training.watch import Rule, Watch

BRIGHTNESS = {"rollout_toys:brightness": 1.0}
SETTINGS = RolloutConfig(num_prompts=4, group_size=4, guidance_scale=1.0, rewards=BRIGHTNESS, max_new_tokens=4)


def brightness(responses: list[Response]) -> list[float | None]:
    """Of a drawing its mean, of an answer its number of letters."""
    return [float(one.drawn.mean()) / 255 if one.drawn is not None else float(len(one.answer or "")) for one in responses]


def constant(responses: list[Response]) -> list[float | None]:
    return [1.0] * len(responses)


def raising(responses: list[Response]) -> list[float | None]:
    raise RuntimeError(f"{len(responses)} responses are too many")


def failing(responses: list[Response]) -> list[float | None]:
    """Of the first prompt no number, of the others their brightness."""
    values = brightness(responses)
    return [float("nan")] * len(responses) if responses[0].prompt.startswith("red") else values


def make_prompts(draws: bool = True, asks: bool = False) -> Mixture:
    drawing = Source("draw", Squares(), DrawingPrompt(), float(draws))
    sources = [drawing, Source("ask", Squares(), QuestionPrompt(), float(asks))]
    return Mixture([one for one in sources if one.weight], make_template())


def make_rollout_trainer(
    folder: Path,
    max_steps: int,
    rollouts: RolloutConfig = SETTINGS,
    mixture: Mixture | None = None,
    rules: tuple[Rule, ...] = (),
    objective: dict[str, Any] | None = None,
    device: str | None = "cpu",
    **changes: Any,
) -> RolloutTrainer:
    """The same fresh model every time."""
    torch.manual_seed(0)
    mixture = mixture or make_prompts()
    guidance = rollouts.guidance_scale if rollouts.guided_log_probs else 1.0
    words = {"temperature": rollouts.temperature, "guidance_scale": guidance, **(objective or {})}
    learned = GRPO(make_model(), **words)
    tokenizer = mixture.template.tokenizer
    image_tokenizer = tiny_image_tokenizer()

    def open_engine(model: UnifiedModel) -> Engine:
        bundle = ModelBundle(model, {DEFAULT: image_tokenizer}, tokenizer)
        return Engine(bundle.to(bundle.device))

    config = make_config(max_steps, optimizer=OptimizerConfig(lr=1e-3), num_positions=96)
    config = replace(config, **changes)
    make = RolloutMaker(rollouts, open_engine, 0, config.num_positions)
    return RolloutTrainer(learned, mixture, config, folder, rollouts, make, Watch(rules), show_rollouts, device=device)
