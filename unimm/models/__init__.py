"""Tensors to tensors: the unified model, its ports, the vision tower and the image tokenizer.

Public names, which YAML and other packages use; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.models.contrastive import ContrastiveConfig, ContrastiveHeads
    from unimm.models.image_tokenizer.gaussian import GaussianConfig
    from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
    from unimm.models.image_tokenizer.quantizers import Quantized, Quantizer, QuantizerConfig
    from unimm.models.lora import LoraConfig
    from unimm.models.ports.base import Filler, LossSums, Passes, Port, PortConfig, PredictedPort
    from unimm.models.ports.latents import LatentsConfig, LatentsPort
    from unimm.models.ports.vocabulary import CodesConfig, VocabularyPort
    from unimm.models.unified import UnifiedConfig, UnifiedModel
    from unimm.models.vision.projectors import Projector, ProjectorConfig, ProjectorSettings
    from unimm.models.vision.qformer_text import QFormerText, QFormerTextConfig
    from unimm.models.vision.tower import VisionConfig, VisionTower

__all__ = [
    "CodesConfig",
    "ContrastiveConfig",
    "ContrastiveHeads",
    "Filler",
    "GaussianConfig",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "LatentsConfig",
    "LatentsPort",
    "LoraConfig",
    "LossSums",
    "Passes",
    "Port",
    "PortConfig",
    "PredictedPort",
    "Projector",
    "ProjectorConfig",
    "ProjectorSettings",
    "QFormerText",
    "QFormerTextConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "UnifiedConfig",
    "UnifiedModel",
    "VisionConfig",
    "VisionTower",
    "VocabularyPort",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "UnifiedModel": "unified",
        "UnifiedConfig": "unified",
        "CodesConfig": "ports.vocabulary",
        "VocabularyPort": "ports.vocabulary",
        **dict.fromkeys(("LatentsConfig", "LatentsPort"), "ports.latents"),
        "ContrastiveConfig": "contrastive",
        **dict.fromkeys(("QFormerText", "QFormerTextConfig"), "vision.qformer_text"),
        "ContrastiveHeads": "contrastive",
        "VisionConfig": "vision.tower",
        "VisionTower": "vision.tower",
        "Projector": "vision.projectors",
        "ProjectorConfig": "vision.projectors",
        "ProjectorSettings": "vision.projectors",
        **dict.fromkeys(("Filler", "LossSums", "Passes", "Port", "PortConfig", "PredictedPort"), "ports.base"),
        "GaussianConfig": "image_tokenizer.gaussian",
        "ImageTokenizer": "image_tokenizer.model",
        "ImageTokenizerConfig": "image_tokenizer.model",
        "QuantizerConfig": "image_tokenizer.quantizers",
        "Quantizer": "image_tokenizer.quantizers",
        "Quantized": "image_tokenizer.quantizers",
        "LoraConfig": "lora",
    },
)
