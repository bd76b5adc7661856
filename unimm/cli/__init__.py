"""The command line: `unimm VERB ...`. Nothing heavy is imported before a verb runs, so that `unimm --help` is quick."""

import logging

from unimm.cli.errors import plain_errors

NOT_FOR_USERS = ("torch.utils._pytree", "torch.utils.cpp_extension")
"""Loggers of libraries that warn other libraries, or of what is not there on a CPU: nothing that a user could act on."""


def main() -> None:
    """The console script `unimm`."""
    for name in NOT_FOR_USERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    with plain_errors():
        from unimm.cli.app import app

        app(prog_name="unimm")
