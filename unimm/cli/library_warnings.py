"""What libraries say to developers, and users could do nothing about: commands do not show it.

Python's own switches bring it back: `python -W default -m unimm.train ...`, PYTHONWARNINGS; and TRANSFORMERS_VERBOSITY. In a
user's own program nothing is changed.
"""

import logging
import os
import sys
import warnings

NOT_FOR_USERS = ("torch.utils._pytree", "torch.utils.cpp_extension", "torchao", "transformers")
"""Loggers of libraries that warn other libraries, or of what is not there on a CPU."""

LIBRARIES = (
    *("torch", "torchvision", "torchao", "torchmetrics", "transformers", "accelerate", "peft", "timm", "huggingface_hub"),
    *("vector_quantize_pytorch", "hydra", "omegaconf", "sklearn", "scipy", "numpy", "PIL", "tensorboard", "matplotlib"),
)
"""Packages whose warnings are of how they are called; with those that they raise in unimm's name, for it raises none itself."""

FOR_USERS = ".*CUDA initialization"
"""A driver that is too old, or a GPU that is in use: the user can mend it, and would wonder why there is none."""


def quiet_libraries() -> None:
    """Of these loggers only errors are shown, of these packages no warnings; best before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in NOT_FOR_USERS:
        if name != "transformers" or os.environ["TRANSFORMERS_VERBOSITY"] == "error":
            logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=rf"({'|'.join((*LIBRARIES, 'unimm'))})(\.|$)")
        warnings.filterwarnings("default", message=FOR_USERS)
