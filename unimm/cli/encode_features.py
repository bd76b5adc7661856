"""`unimm encode-features`: the images of data sets as stored features of a model's vision tower, so that stages in which the
tower is frozen never run it.

Which images is what the data configuration says of the sources that look at any; each has a folder of its own, by its name.
Interrupted, it goes on where it stopped; a launcher's processes share the work:

    torchrun --nproc_per_node 8 -m unimm.cli.encode_features init_from=FOLDER out=FEATURES
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.builders import check_looks, looking_sources, without_codes
from unimm.cli.compose import build, check_given, join_group, print_paths, run_with_hydra
from unimm.precompute.features import encode_features
from unimm.precompute.sharded_pass import PassConfig
from unimm.runtime.devices import keep_memory


def store_features(config: DictConfig) -> list[Path]:
    """Store the features of all sources whose images go through the vision tower.

    Returns:
        The folders written, one a source.

    Raises:
        ValueError: no source has such images, or the model sees codes alone.
    """
    check_given(config.data, "data")
    names = looking_sources(config)
    device, ranks = join_group(config.device)
    if device.type == "cpu":
        keep_memory()
    bundle = ModelBundle.load(config.init_from, device, torch.float32)  # as in training: the fingerprint counts dtypes
    check_looks(bundle.prompt_format)
    work = PassConfig(config.batch_size, config.num_workers, ranks, max_bad=config.max_bad)
    settings = {"precision": config.precision, "dtype": config.dtype, "work": work}
    stored = []
    for name in names:
        dataset = build(without_codes(config.data.sources[name].dataset))
        folder = Path(config.out) / name
        stored.append(encode_features(bundle.model.pixels.tower, dataset, folder, source=name, **settings).folder)
    return stored


def main(argv: list[str] | None = None) -> None:
    """The command: overrides in, folders out."""
    run_with_hydra("encode_features", lambda config: print_paths(store_features(config)), argv)


if __name__ == "__main__":
    main()
