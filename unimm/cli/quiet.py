"""What libraries say to developers, and users could do nothing about."""

import logging
import os

NOT_FOR_USERS = ("torch.utils._pytree", "torch.utils.cpp_extension")
"""Loggers of libraries that warn other libraries, or of what is not there on a CPU."""


def quiet_loggers() -> None:
    """Of these only errors are shown."""
    for name in NOT_FOR_USERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Keep `transformers` from printing notes for developers; before it is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
