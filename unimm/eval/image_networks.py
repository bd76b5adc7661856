"""The networks of image scores: Inception-v3 as FID has it, and a CLIP. Their weights are the user's to bring.

A file is read without running what a pickle may hold, and a missing one is a sentence that says where it is to be had.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file, of its release v0.2.0."""

NUM_FEATURES = 2048


def open_inception(path: Path | None) -> nn.Module:
    """Inception-v3 as FID has it, in eval mode: images (N, 3, H, W) uint8 -> features (N, 2048).

    path: its weights, torch-fidelity's file; None: where PyTorch keeps what was downloaded.

    Raises:
        ValueError: torch-fidelity is not installed, there is no such file, or it holds something else.
    """
    if find_spec("torch_fidelity") is None:
        raise ValueError('FID needs the package torch-fidelity: pip install "unimm[eval]".')
    file = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not file.is_file():
        raise ValueError(
            f"FID needs Inception's weights, and {file} is not there: download {INCEPTION} from torch-fidelity's release "
            "v0.2.0 (github.com/toshas/torch-fidelity), and name it with --inception."
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # Read once without running what a pickle may hold: the library's own reading does not refuse it.
        torch.load(file, map_location="cpu", weights_only=True)
        return NoTrainInceptionV3("inception-v3-compat", [str(NUM_FEATURES)], str(file), antialias=False)
    except Exception as error:  # a damaged or foreign file makes torch raise nearly anything
        raise ValueError(f"{file} does not hold Inception's weights as torch-fidelity has them: {INCEPTION}.") from error


def open_clip(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    """A CLIP of transformers, as torchmetrics' CLIPScore takes it. name: a folder or hub id.

    Raises:
        ValueError: neither the hub nor its cache has it.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        model, processor = CLIPModel.from_pretrained(name, use_safetensors=True), CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"CLIPScore needs a CLIP, and {name} is not here: give its folder with --clip.") from error
    return lambda: (PooledClip(model), processor)


class PooledClip(nn.Module):
    """A CLIP whose features are tensors, as torchmetrics expects them; transformers 5 gives them inside of an output."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip.eval()
        self.config: Any = clip.config

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        """(N, D)."""
        return _pooled(self.clip.get_image_features(*inputs))  # pyright: ignore[reportCallIssue]

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        """(N, D)."""
        return _pooled(self.clip.get_text_features(*inputs))  # pyright: ignore[reportCallIssue]


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output
