"""The dtype of a pass over a data set, which may run on several machines: a folder is finished in the one that it was begun in.

Codes and features of two dtypes differ a little, so a folder holds those of one. `auto` chooses by the device, and would choose
otherwise on another kind of CPU: then the folder decides, and it is said. Of several processes the first one decides.
"""

from pathlib import Path

import torch

from unimm.precompute.sharded_pass import PassConfig
from unimm.runtime.atomic_files import read_json
from unimm.runtime.devices import PRECISIONS, choose_precision
from unimm.runtime.resumable_folder import begun_content


def settle_precision(
    asked: str, weight: torch.Tensor, out: Path, manifest: str, network: dict[str, str], work: PassConfig
) -> str:
    """ "no" or "bf16"; every process calls it, before anyone begins.

    Args:
        asked: one of PRECISIONS.
        weight: of the network, where it will run.
        manifest: the name of the file that a finished folder is described in.
        network: what that says of the network, such as its fingerprint; what another has made does not count.

    Raises:
        ValueError: unknown precision.
    """
    chosen = choose_precision(asked, weight.device)
    if asked != "auto":
        return chosen
    chosen = "bf16" if work.ranks.broadcast(chosen == "bf16") else "no"
    found = begun_content(out) or read_json(out / manifest) or {}
    began = {precision_name(precision, weight): precision for precision in PRECISIONS if precision != "auto"}
    if not found:
        work.say(f"{out}: precision=auto takes {precision_name(chosen, weight)} on this {weight.device.type} device.")
    kept = began.get(str(found.get("precision")))
    is_of_another = any(found.get(name) != value for name, value in network.items())
    kept = chosen if kept is None or is_of_another else kept
    kept = "bf16" if work.ranks.broadcast(kept == "bf16") else "no"
    if kept == chosen:
        return chosen
    work.say(
        f"{out} was begun in {precision_name(kept, weight)} and goes on so, though precision=auto would take "
        f"{precision_name(chosen, weight)} here; to change it, remove it and give precision={chosen}."
    )
    return kept


def precision_name(precision: str, weight: torch.Tensor) -> str:
    """As manifests have it: bf16, or the dtype of the weights."""
    return precision if precision != "no" else str(weight.dtype).removeprefix("torch.")
