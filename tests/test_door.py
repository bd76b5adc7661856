"""The public door: every name of the contract is there, and importing the package costs nothing."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import unimm


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("statement", ["import unimm", "import unimm.sequence", "from unimm import Sequence, Kind, Segment"])
def test_the_door_and_the_sequence_pull_in_neither_torch_nor_the_engine(statement: str) -> None:
    loaded = modules_after(statement)
    assert "unimm" in loaded
    assert not loaded & {"torch", "transformers", "unimm.inference", "unimm.models", "hydra", "typer"}


def test_the_shell_asks_for_torch_only_when_a_verb_runs() -> None:
    loaded = modules_after("import unimm.cli.app")
    assert not loaded & {"torch", "transformers", "hydra", "PIL"}


HEAVY = {
    *("torchvision", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "accelerate", "torchao", "peft"),
    *("timm", "vector_quantize_pytorch", "transformers.modeling_utils", "torchmetrics"),
    *("sklearn", "scipy", "matplotlib", "pandas", "hydra", "tensorboard"),
}
"""What takes longer to import than the demo to answer, of which captioning and drawing use nothing."""


COMMANDS = {
    "caption": ["caption", "unimm-demo.png", "--model", "demo"],
    "generate": ["generate", "a red circle", "--out", "drawing.png", "--model", "demo"],
    "demo": ["demo", "--no-show"],
}


@pytest.fixture(scope="module")
def loaded_by_commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a fresh interpreter holds after each command, one after the other."""
    folder = tmp_path_factory.mktemp("commands")
    Image.new("RGB", (64, 64)).save(folder / "unimm-demo.png")
    code = "import json, sys\nfrom unimm.cli.app import app\nloaded = {}\n"
    for name, words in COMMANDS.items():
        code += f"app({words}, standalone_mode=False)\nloaded[{name!r}] = list(sys.modules)\n"
    code += "import unimm.cli.train\nloaded['train'] = list(sys.modules)\n"
    code += "json.dump(loaded, open('loaded.json', 'w'))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120, cwd=folder)
    return {name: set(modules) for name, modules in json.loads((folder / "loaded.json").read_text()).items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_shell_loads_what_it_uses(name: str, loaded_by_commands: dict[str, set[str]]) -> None:
    loaded = loaded_by_commands[name]
    assert {"torch", "transformers", "unimm.models.llama"} <= loaded
    assert not loaded & HEAVY


def test_what_few_trainings_use_is_imported_where_it_is_used(loaded_by_commands: dict[str, set[str]]) -> None:
    """A third of what importing `unimm train` would take: it is done at every start, of every rank."""
    assert "unimm.training.trainer" in loaded_by_commands["train"]
    assert not loaded_by_commands["train"] & {"torchmetrics", "torchvision", "matplotlib", "sklearn", "scipy.signal", "pandas"}


def test_every_public_name_is_there() -> None:
    for name in unimm.__all__:
        assert getattr(unimm, name) is not None
        assert name in dir(unimm)
    assert unimm.__version__[0].isdigit()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unimm.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "name",
    ["caption", "answer", "chat", "generate_images", "generate_codes", "decode_codes", "encode_image", "fill", "save"],
)
def test_the_engine_keeps_its_contract(name: str) -> None:
    assert callable(getattr(unimm.Engine, name))
    assert getattr(unimm.Engine, name).__doc__
