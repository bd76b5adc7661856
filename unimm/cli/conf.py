"""Where the configurations are, for those who need no Hydra."""

from pathlib import Path

import unimm


def conf_folder() -> Path:
    """Where the configurations are: inside the wheel, or at the top of the checkout."""
    package = Path(unimm.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"No configurations beside {package}: install unimm again.")
