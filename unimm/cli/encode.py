"""`unimm encode`: the images of data sets as stored codes, so that training never runs the image tokenizer; or as stored
latents, with an image tokenizer that has these.

Which images, and into which folder, is what the data configuration says of its `CodedDataset`s, or `LatentDataset`s: what is
encoded is then by itself what training will ask for. Interrupted, it goes on where it stopped; a launcher's processes share
the work:

    torchrun --nproc_per_node 8 -m unimm.cli.encode image_tokenizer=FOLDER out=CODES
"""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from unimm.cli.builders import coded_nodes, open_image_tokenizer, without_codes
from unimm.cli.compose import build, check_given, join_group, print_paths, run_with_hydra
from unimm.data.grids import Grid
from unimm.data.records import Dataset, Record
from unimm.data.shards.dataset import ShardedDataset
from unimm.data.stores.digests import image_digest
from unimm.precompute.coded_shards import encode_shards
from unimm.precompute.codes import encode_dataset
from unimm.precompute.latents import encode_latents
from unimm.precompute.sharded_pass import PassConfig
from unimm.runtime.devices import keep_memory

NUM_COMPARED = 64
"""Records of two data sets with the same folder that are compared."""


def encode(config: DictConfig) -> list[Path]:
    """Encode the coded data sets of the configuration, or those of them that `names` lists.

    Returns:
        The folders written, one a data set.

    Raises:
        ValueError: a name is none of them.
    """
    check_given(config.data, "data")
    if config.names is not None:
        known = _names(config)
        if unknown := sorted(set(config.names) - set(known)):
            raise ValueError(f"No coded data set is called {', '.join(unknown)}: there is {', '.join(known)}.")
    tokenizer = open_image_tokenizer(config)
    chosen = _coded_datasets(config, tokenizer.is_continuous)
    if config.names is not None:
        chosen = {name: node for name, node in chosen.items() if name in set(config.names)}
        if not chosen:
            what = "latents" if tokenizer.is_continuous else "codes"
            raise ValueError(
                f"This image tokenizer has {what}, and none is stored of {', '.join(config.names)}: name another one."
            )
    device, ranks = join_group(config.device)
    if device.type == "cpu":
        keep_memory()
    tokenizer = tokenizer.to(device)
    make = encode_latents if tokenizer.is_continuous else encode_dataset
    settings = {
        "precision": config.precision,
        "work": PassConfig(config.batch_size, config.num_workers, ranks, max_bad=config.max_bad),
    }
    folders = []
    for name, node in chosen.items():
        dataset = build(without_codes(node))
        if isinstance(dataset, ShardedDataset):
            folders.append(encode_shards(tokenizer, dataset, Path(node.folder), name, **settings, **_grid_of(node)))
        else:
            folders.append(make(tokenizer, dataset, node.folder, name=name, **settings, **_grid_of(node)).folder)
    return folders


def _names(config: DictConfig) -> list[str]:
    """Of the folders of all data sets with stored codes or latents."""
    sources = config.data.sources.values()
    nodes = (node for latents in (False, True) for source in sources for node in coded_nodes(source.dataset, latents))
    return list(dict.fromkeys(Path(node.folder).name for node in nodes))


def _grid_of(node: DictConfig) -> dict[str, Any]:
    """The grid that a coded data set names, if it names one."""
    named = node.get("grid")
    return {} if named is None else {"grid": Grid.read(named)}


def _coded_datasets(config: DictConfig, latents: bool = False) -> dict[str, DictConfig]:
    """The nodes of all data sets with stored codes, or latents, by the name of their folder.

    Raises:
        ValueError: there are none, or two that show different images name the same folder.
    """
    check_given(config.data, "data")
    found: dict[str, DictConfig] = {}
    for node in chain.from_iterable(coded_nodes(source.dataset, latents) for source in config.data.sources.values()):
        name = Path(node.folder).name
        if name not in found:
            found[name] = node
        elif found[name] != node and not _same_images(*(build(without_codes(one)) for one in (found[name], node))):
            raise ValueError(f"Two data sets of different images have the folder of codes '{name}': give one another folder.")
    if not found:
        what, wrapper = ("latents", "LatentDataset") if latents else ("codes", "CodedDataset")
        raise ValueError(f"No source of this data configuration has stored {what}: wrap its dataset in unimm.data.{wrapper}.")
    return found


def _same_images(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets show the same images, judged by a sample from all over, whatever their texts; of shards, whether
    they are the same files.

    Training compares each of them."""
    if isinstance(one, ShardedDataset) or isinstance(other, ShardedDataset):
        both = [(own.top, own.at_start) for own in (one, other) if isinstance(own, ShardedDataset)]
        return len(both) == 2 and both[0] == both[1]
    if len(one) != len(other):
        return False
    places = np.unique(np.linspace(0, max(0, len(one) - 1), NUM_COMPARED).astype(int))[: len(one)]
    pairs = ((one[int(place)], other[int(place)]) for place in places)
    return all(a.key == b.key and _digest(a) == _digest(b) for a, b in pairs)


def _digest(record: Record) -> bytes | None:
    return None if record.image is None else image_digest(record.image)


def main(argv: list[str] | None = None) -> None:
    """The command: names of data sets and overrides in, folders out."""
    run_with_hydra("encode", lambda config: print_paths(encode(config)), argv, names="names")


if __name__ == "__main__":
    main()
