"""`unimm join`: a language model, a SigLIP and an image tokenizer as one model, to be trained from stage I on."""

from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.init_from import load_tower, load_trunk, read_tower_sizes, read_trunk_sizes
from unimm.checkpoints.weight_files import CONFIG, find_folder
from unimm.cli.builders import build_model, open_image_tokenizer
from unimm.cli.compose import compose_config, seed_everything
from unimm.data.text import TextTokenizer
from unimm.models.initialization import init_codes_from_codebook
from unimm.runtime.atomic_files import check_replaceable

status = Console(stderr=True)


def join(trunk: str, vision: str, image_tokenizer: str, out: Path, seed: int = 0) -> None:
    """Write a model folder of these parts. Special tokens that the language model's tokenizer lacks are added to it.

    Raises:
        ValueError: a part cannot be read, or `out` holds something else than a model.
    """
    check_replaceable(out.resolve(), CONFIG, "a model folder")
    seed_everything(seed)
    trunk_folder, tower_folder = find_folder(trunk), find_folder(vision)
    tokenizer = TextTokenizer.load(trunk_folder, add_missing=True)
    images = open_image_tokenizer(OmegaConf.create({"image_tokenizer": image_tokenizer}))
    config = compose_config("train", ["codes=none", "image_tokenizer=none"])
    sizes = read_trunk_sizes(trunk_folder)
    # Language models often have more rows than their tokenizer has ids, for tokens to come.
    config.model.trunk = {**sizes, "vocab_size": max(sizes.get("vocab_size") or 0, len(tokenizer))}
    config.model.vision = {"_target_": config.model.vision._target_, **asdict(read_tower_sizes(tower_folder))}
    with status.status(f"Joining {trunk} and {vision}"):
        model = build_model(config, tokenizer, images)
        load_trunk(model, trunk_folder)
        load_tower(model, tower_folder)
        if images.quantize.codebook.shape == model.codes.embedding.weight.shape:
            init_codes_from_codebook(model.codes, images.quantize.codebook)
        reasons = ModelBundle(model.eval(), {DEFAULT: images}, tokenizer).save(out)
    layout = f"in unimm's own layout: {'; '.join(reasons)}" if reasons else "opens in transformers as a Janus, too"
    status.print(f"{out} {layout}. Its projector and its image head are untrained: stage I is next.")
