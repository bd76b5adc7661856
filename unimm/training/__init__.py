"""Batches to weights: one trainer for the unified model and one for image tokenizers, on one loop.

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.training.checkpoint_writer import CheckpointConfig
    from unimm.training.image_tokenizer.discriminator import AdversaryConfig
    from unimm.training.image_tokenizer.reconstruction_loss import ReconstructionLossConfig
    from unimm.training.image_tokenizer.trainer import TokenizerTrainerConfig
    from unimm.training.objectives.contrastive import Contrastive
    from unimm.training.objectives.grpo import GRPO
    from unimm.training.objectives.kto import KTO
    from unimm.training.objectives.likelihood import JointObjective, Likelihood, Objective
    from unimm.training.objectives.preferences import DPO, SimPO
    from unimm.training.objectives.qformer_alignment import QFormerAlignment
    from unimm.training.objectives.vision_pretraining import VisionPretraining
    from unimm.training.optimizers import Budget, OptimizerConfig, Schedule
    from unimm.training.rollouts import RolloutConfig
    from unimm.training.sharding import Sharding
    from unimm.training.trackers import TrackingConfig
    from unimm.training.trainable_parts import Stage
    from unimm.training.trainer import Trainer, TrainerConfig
    from unimm.training.watch import Rule

__all__ = [
    "DPO",
    "GRPO",
    "KTO",
    "AdversaryConfig",
    "Budget",
    "CheckpointConfig",
    "Contrastive",
    "JointObjective",
    "Likelihood",
    "Objective",
    "OptimizerConfig",
    "QFormerAlignment",
    "ReconstructionLossConfig",
    "RolloutConfig",
    "Rule",
    "Schedule",
    "Sharding",
    "SimPO",
    "Stage",
    "TokenizerTrainerConfig",
    "TrackingConfig",
    "Trainer",
    "TrainerConfig",
    "VisionPretraining",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Stage": "trainable_parts",
        "Objective": "objectives.likelihood",
        "Likelihood": "objectives.likelihood",
        "VisionPretraining": "objectives.vision_pretraining",
        "JointObjective": "objectives.likelihood",
        "Contrastive": "objectives.contrastive",
        "QFormerAlignment": "objectives.qformer_alignment",
        "DPO": "objectives.preferences",
        "SimPO": "objectives.preferences",
        "KTO": "objectives.kto",
        "GRPO": "objectives.grpo",
        "RolloutConfig": "rollouts",
        "Rule": "watch",
        "Trainer": "trainer",
        "TrainerConfig": "trainer",
        "CheckpointConfig": "checkpoint_writer",
        "Budget": "optimizers",
        "Schedule": "optimizers",
        "OptimizerConfig": "optimizers",
        "Sharding": "sharding",
        "TrackingConfig": "trackers",
        "TokenizerTrainerConfig": "image_tokenizer.trainer",
        "ReconstructionLossConfig": "image_tokenizer.reconstruction_loss",
        "AdversaryConfig": "image_tokenizer.discriminator",
    },
)
