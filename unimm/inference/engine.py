"""The engine: images and strings in, images and strings out. Everything a user asks of a model goes through it.

It prepares images, writes prompts as open sequences, has the decode loop fill them, and turns ids back into text and codes
back into images. It knows no HTTP and no files but the model's own folder. Most of its calls stand in `text_calls`,
`image_calls`, `trace` and `locating`; `load` makes an engine from a path.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from unimm.checkpoints.bundle import ModelBundle
from unimm.inference.decode.request import Branch, requests_for
from unimm.inference.decode.sampling import Sampling
from unimm.inference.embedding import EmbeddingCalls
from unimm.inference.head_towers import HeadTowers
from unimm.inference.input_validation import check_weights
from unimm.inference.locating import LocatingCalls
from unimm.inference.loglikelihood import LogLikelihood, check_targets, score_pass, split_passes
from unimm.runtime.devices import choose_device, choose_dtype, keep_memory
from unimm.sequence import Sequence


class Engine(LocatingCalls, EmbeddingCalls):
    """A model ready to use. Made by `unimm.load`.

    Args:
        bundle: the model with its tokenizers and conventions, in eval mode, on its device.
        limits: how much it decodes at once, and how much may wait.
        weights, deterministic, kernels: as `Decoder` and `ImageCoder` have them.
        is_stopped: called before every step of decoding; once it returns True, whatever is being filled ends with `Stopped`.
    """

    @property
    def towers(self) -> HeadTowers:
        """The contrastive heads, which `embed_images`, `embed_texts` and `classify` use. ValueError: the model has none."""
        return HeadTowers(self.bundle)

    def save(
        self,
        path: str | Path,
        max_shard_size: int | str = "5GB",
        notes: str = "",
        write_more: Callable[[Path], object] = lambda folder: None,
    ) -> list[str]:
        """Write the model as one folder: `ModelBundle.save`, with its arguments, result and errors."""
        return self.bundle.save(path, max_shard_size, notes, write_more)

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Save the model and upload it to the Hugging Face hub: `ModelBundle.push_to_hub`."""
        return self.bundle.push_to_hub(repo_id, private)

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy new values into the model's parameters, by name; running requests go on with them.

        Raises:
            ValueError: a name or shape is none of the model's; then nothing has changed.
        """
        own, new = dict(self.model.named_parameters(remove_duplicate=False)), dict(tensors)
        check_weights(own, new)
        self.decoder.swap_weights(lambda: [own[name].copy_(tensor) for name, tensor in new.items()])

    def fill(
        self,
        sequences: list[Sequence],
        sampling: Sampling | list[Sampling] | None = None,
        guidance_scale: float = 1.0,
        branches: tuple[Branch, ...] | list[tuple[Branch, ...]] = (),
    ) -> list[Sequence]:
        """Open sequences in, closed sequences out, texts and drawings mixed in one batch.

        Args:
            sampling: for all of them, or a list with one for each.
            branches: guidance by other prompts than `guidance_scale` has it for, as `Request` takes them; or a list of those.
        """
        requests = requests_for([sequence.opened() for sequence in sequences], sampling, guidance_scale, branches)
        return [sequence.fill(ids) for sequence, ids in zip(sequences, self.decoder.fill(requests), strict=True)]

    def loglikelihood(self, sequences: list[Sequence]) -> list[LogLikelihood]:
        """How probable the model finds what is learned in closed sequences: for each the sum of the natural log-probabilities
        of its targets, their number, and whether greedy decoding would have said the same (`unimm.inference.loglikelihood`).

        They go through the model in batches, each alone with `deterministic`; in float32 both give the same but for rounding.
        Requests wait for one pass at a time. The weights are the model's own, also where it decodes with fewer bits.

        Raises:
            ValueError: a sequence is open, learns nothing, is too long, or holds what the model does not know.
        """
        for sequence in sequences:
            check_targets(self.model, sequence)
        found: dict[int, LogLikelihood] = {}
        for places in split_passes(sequences, self.device, self.deterministic):
            opened = [sequences[place].opened() for place in places]
            with self.decoder.between_steps():
                found |= zip(places, score_pass(self.model, opened), strict=True)
        return [found[place] for place in range(len(sequences))]


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    adapter: str | Path | None = None,
    allow_code: bool = False,
    **engine: Any,
) -> Engine:
    """A model, ready to use. On a CPU the process keeps freed memory from then on (`unimm.runtime.devices.keep_memory`).

    Args:
        path: a model folder, a hub id such as "deepseek-community/Janus-Pro-1B", or "demo", the model that comes with unimm.
        device: "cuda", "cuda:1", "mps", "cpu"; default: the best that is here.
        dtype: "float32", "bfloat16" or "float16"; default: a sensible one for the model's size and the device.
        adapter: a folder or hub id of LoRA matrices that were made for this model, to merge into its weights in memory.
        allow_code: import the packages that the folder names parts of, if it names any (`unimm.runtime.plugins`).
        engine: `limits`, `weights` ("int8", "int4", "fp8"), `deterministic` and `kernels` ("triton", on CUDA devices) of
            `Engine`.

    Raises:
        ValueError: there is no such model or adapter, it cannot be read, the adapter is another model's, the device is not
            here or has no such kernels, or the folder needs code that is not allowed or
            not installed: one sentence says what to do.
    """
    where = choose_device(device)
    if where.type == "cpu":
        keep_memory()
    chosen = choose_dtype(dtype, where) if dtype is not None or where.type != "cpu" else None
    bundle = ModelBundle.load(path, where, chosen, adapter=adapter, allow_code=allow_code)
    if chosen is None:  # on a CPU the model's size decides
        size = sum(parameter.numel() for parameter in bundle.model.parameters())
        bundle.change_dtype(choose_dtype(None, where, size))
    return Engine(bundle, **engine)
