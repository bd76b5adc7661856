"""The command line: `unimm COMMAND ...`. Nothing heavy is imported before a command runs, so that `unimm --help` is quick."""

from unimm.cli.library_warnings import quiet_libraries
from unimm.runtime.environment import prepare_threads


def main() -> None:
    """The console script `unimm`."""
    prepare_threads()
    quiet_libraries()
    from unimm.cli.app import app

    app(prog_name="unimm")
