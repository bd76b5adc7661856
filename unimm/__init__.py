"""unimm: train, run and measure models that understand and generate images with one autoregressive Transformer.

The public names are fetched when they are first asked for, so that `import unimm` and `import unimm.sequence` pull in neither
torch nor the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unimm.runtime.environment import prepare_libraries

if TYPE_CHECKING:
    from unimm.data.boxes import Box
    from unimm.inference.decode.workload import Limits
    from unimm.inference.engine import Engine, load
    from unimm.inference.second_look import Verification
    from unimm.retrieval.towers import load_towers
    from unimm.runtime.provenance import read_provenance, write_image
    from unimm.sequence import Kind, Segment, Sequence

    __version__: str

__all__ = [
    "Box",
    "Engine",
    "Kind",
    "Limits",
    "Segment",
    "Sequence",
    "Verification",
    "__version__",
    "load",
    "load_towers",
    "read_provenance",
    "write_image",
]

_HOMES = {
    "load": "unimm.inference.engine",
    "load_towers": "unimm.retrieval.towers",
    "Engine": "unimm.inference.engine",
    "Box": "unimm.data.boxes",
    "Limits": "unimm.inference.decode.workload",
    "Kind": "unimm.sequence",
    "Segment": "unimm.sequence",
    "Sequence": "unimm.sequence",
    "Verification": "unimm.inference.second_look",
    "read_provenance": "unimm.runtime.provenance",
    "write_image": "unimm.runtime.provenance",
}


prepare_libraries()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from unimm.runtime.version import package_version

        return package_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'unimm' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
