"""Every format on disk: our own folders, `transformers`' Janus, DeepSeek's repositories, adapters; names of weights.

Public names, which other packages use; they are imported at first use.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.checkpoints.bundle import ModelBundle
    from unimm.checkpoints.drawing_defaults import DrawingDefaults

__all__ = ["DrawingDefaults", "ModelBundle"]

__getattr__, __dir__ = lazy_exports(__name__, {"ModelBundle": "bundle", "DrawingDefaults": "drawing_defaults"})
