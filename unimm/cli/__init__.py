"""The command line: `unimm VERB ...`. Nothing heavy is imported before a verb runs, so that `unimm --help` is quick."""

from unimm.cli.errors import plain_errors
from unimm.cli.library_warnings import quiet_libraries
from unimm.runtime.environment import prepare_threads


def main() -> None:
    """The console script `unimm`."""
    prepare_threads()
    quiet_libraries()
    with plain_errors():
        from unimm.cli.app import app

        app(prog_name="unimm")
