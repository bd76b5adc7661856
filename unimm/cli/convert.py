"""`unimm convert`: any model that opens here, written again as one that opens everywhere."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from unimm.checkpoints.autoencoder_kl import is_autoencoder_kl, load_autoencoder_kl
from unimm.checkpoints.bundle import ModelBundle
from unimm.checkpoints.hub import upload_model
from unimm.checkpoints.image_tokenizer_folder import save_image_tokenizer
from unimm.checkpoints.janusflow import is_janusflow, load_janusflow
from unimm.checkpoints.weight_files import CONFIG, find_folder, read_config
from unimm.cli.builders import read_latents_tokenizer
from unimm.cli.checkpoint_model import is_checkpoint, open_as_bundle
from unimm.runtime.atomic_files import check_replaceable
from unimm.runtime.devices import choose_dtype

console = Console(highlight=False, soft_wrap=True)
status = Console(stderr=True)


def convert(  # noqa: PLR0913 - as many as the command has options
    source: str,
    out: Path,
    from_pickle: bool = False,
    dtype: str | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
    drawing: dict[str, float] | None = None,
    notes: Path | None = None,
    adapter: str | None = None,
    image_size: int | None = None,
    latents_tokenizer: str | None = None,
) -> None:
    """Write a model folder or hub id, or a training's checkpoint, as a folder in `transformers`' layout, or, where it is no
    Janus, in our own.

    Args:
        from_pickle: read PyTorch's .bin files where the source has no safetensors.
        dtype: of the weights that are written; None: as they are stored.
        drawing: how it draws where a caller does not say, instead of its own defaults; names of `DrawingDefaults`.
        notes: a Markdown file that becomes a part of the model card.
        image_size: of a source that is diffusers' autoencoder, which works at any: of the image tokenizer that is written.
        latents_tokenizer: of a source that is a JanusFlow: the folder of the image tokenizer that it draws with.
        adapter: a folder or hub id of LoRA matrices that were made for the source, to merge into its weights.
        push_to_hub: the hub repository to upload the result to. private: see `upload_model`.

    Raises:
        ValueError: the source or the adapter cannot be read, they do not belong together, or `out` holds something else than a
            model.
    """
    if is_autoencoder_kl(source):
        _convert_autoencoder(source, out, image_size)
        return
    if image_size is not None:
        raise ValueError("--image-size is of diffusers' autoencoders, which work at any size: leave it out of models.")
    check_replaceable(out.resolve(), CONFIG, "a model folder")
    if notes is not None and not notes.is_file():
        raise ValueError(f"{notes} is no file: --notes names a Markdown file.")
    if not is_checkpoint(source):
        _check_flow(source, from_pickle, latents_tokenizer, adapter)
    elif adapter is not None or latents_tokenizer is not None:
        raise ValueError("A checkpoint has all of its model: leave --adapter and --latents-tokenizer out.")
    cpu = torch.device("cpu")
    chosen = choose_dtype(dtype, cpu) if dtype else None
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".convert-") as scratch:
        with status.status(f"Reading {source}"):
            if is_checkpoint(source):
                bundle = open_as_bundle(source, Path(scratch), chosen)
            elif latents_tokenizer is not None:
                bundle = load_janusflow(source, read_latents_tokenizer(latents_tokenizer), chosen, from_pickle)
            else:
                bundle = ModelBundle.load(source, cpu, chosen, from_pickle=from_pickle, adapter=adapter)
        with status.status(f"Writing {out}"):
            bundle = replace(bundle, drawing=replace(bundle.drawing, **(drawing or {})))
            reasons = bundle.save(out, notes=notes.read_text(encoding="utf-8") if notes else "")
    if reasons:
        console.print(f"{out} is in unimm's own layout, which transformers cannot open: {'; '.join(reasons)}.")
    else:
        console.print(f"{out} opens in transformers as JanusForConditionalGeneration, and here.")
    if push_to_hub:
        with status.status(f"Uploading to {push_to_hub}"):
            address = upload_model(out, push_to_hub, private)
        console.print(address)


def _check_flow(source: str, from_pickle: bool, latents_tokenizer: str | None, adapter: str | None) -> None:
    """Raises ValueError where a JanusFlow lacks what it draws with, or what is no JanusFlow is given that."""
    is_flow = is_janusflow(read_config(find_folder(source, from_pickle)))
    if is_flow and latents_tokenizer is None:
        raise ValueError(
            f"{source} is a JanusFlow, and its folder lacks the autoencoder that it draws with: add --latents-tokenizer "
            f"FOLDER of SDXL's, which `unimm convert sdxl-vae FOLDER --image-size 384` writes."
        )
    if latents_tokenizer is not None and (not is_flow or adapter is not None):
        raise ValueError("--latents-tokenizer is for a JanusFlow alone, whose folder lacks it: leave it out, or --adapter.")


def _convert_autoencoder(source: str, out: Path, image_size: int | None) -> None:
    """Write the image tokenizer of a folder of diffusers' `AutoencoderKL`."""
    if image_size is None:
        raise ValueError("This autoencoder works at any size: say which one your images have, --image-size 384 as JanusFlow.")
    with status.status(f"Reading {source}"):
        tokenizer = load_autoencoder_kl(source, image_size)
    with status.status(f"Writing {out}"):
        save_image_tokenizer(out, tokenizer)
    shape = " x ".join(map(str, tokenizer.latent_shape))
    console.print(f"{out} is an image tokenizer of {image_size} px as {shape} latents: latents_tokenizer={out} draws with it.")
