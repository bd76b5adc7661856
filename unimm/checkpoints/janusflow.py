"""DeepSeek's JanusFlow (arXiv 2411.07975) as its repository holds it, with the autoencoder that it draws with. Read, never
written: `unimm convert` puts both together.

It is a `multi_modality` folder with other parts than Janus': a linear projector, and a flow's adapters in place of all that is
about codes. Two of its habits are not in the weights' names. The embedding of begin-of-image is a parameter of its own,
`beg_of_und_embed`, wherever an image is looked at; where one is drawn the time stands in its place: so it becomes that row of
the text embedding, which nothing else reads. And its null prompt is hidden from the image that is drawn (`hides_null_prompt`).
Source: deepseek-ai/Janus, janus/janusflow/models and demo/app_janusflow.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unimm.checkpoints import deepseek_config
from unimm.checkpoints.bundle import ModelBundle, check_image_preparation, read_prompt_format
from unimm.checkpoints.janus_config import from_janus_config
from unimm.checkpoints.weight_files import empty_parameters, find_folder, open_weights, read_config
from unimm.checkpoints.weight_names import JANUSFLOW
from unimm.data.records import LATENTS
from unimm.data.text import TextTokenizer
from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.ports.latents import LatentsConfig
from unimm.models.unified import UnifiedConfig, UnifiedModel
from unimm.models.vision.projectors import ProjectorConfig

FLOW, DECODER, LOOKS = "vision_gen_enc_config", "vision_gen_dec_config", "vision_und_enc_config"
BEGIN = "beg_of_und_embed"
DOWNSAMPLING = 8
"""Pixels a latent of its autoencoder, along one side."""


def is_janusflow(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a JanusFlow."""
    return config.get("model_type") == deepseek_config.MODEL_TYPE and FLOW in config


def read_sizes(config: Mapping[str, Any]) -> UnifiedConfig:
    """The sizes that its config.json says. ValueError: a part is missing, or one that unimm does not have."""
    one_layer = {"params": {"depth": 1}}
    aligned = {"aligner_config": one_layer, "gen_aligner_config": one_layer, "gen_head_config": {"params": {}}}
    janus = deepseek_config.as_janus_config({**config, **aligned, "vision_config": config.get(LOOKS), "gen_vision_config": {}})
    sizes, _ = from_janus_config(janus)
    flow = _flow(config, FLOW), _flow(config, DECODER)
    channels, widths, num_blocks = (flow[0].get(name) for name in ("input_channels", "block_out_channels", "layers_in_middle"))
    expected = {"hidden_size": sizes.trunk_config().hidden_size, "layers_in_middle": num_blocks}
    patch_size = flow[0].get("stride", 2)
    for one in flow:
        for name, value in expected.items():
            if one.get(name, value) != value:
                raise ValueError(
                    f"config.json: {name} of the flow's adapters is {one[name]}, not {value}: unimm has no such one."
                )
    if not isinstance(widths, list) or len(widths) != 1 or flow[0].get("kernel_size", patch_size) != patch_size:
        raise ValueError(f"config.json, {FLOW}: unimm has adapters of one level of patches, not block_out_channels={widths}.")
    port = LatentsConfig(
        channels=channels or 4,
        latent_size=sizes.vision.image_size // DOWNSAMPLING,
        patch_size=patch_size,
        width=int(widths[0]),
        num_blocks=num_blocks or 2,
        hides_null_prompt=True,
    )
    return replace(sizes, codes=None, projector=ProjectorConfig("linear", 1), ports={LATENTS: port})


def load_janusflow(
    source: str | Path, image_tokenizer: ImageTokenizer, dtype: torch.dtype | None = None, from_pickle: bool = False
) -> ModelBundle:
    """A JanusFlow of a folder or hub id on a CPU, with the autoencoder that it draws with (`autoencoder_kl`).

    Raises:
        ValueError: there is none, it cannot be read, or the autoencoder's latents are of another shape.
    """
    folder = find_folder(source, from_pickle)
    raw = read_config(folder)
    if not is_janusflow(raw):
        raise ValueError(f"{folder} is no JanusFlow: its config.json has no {FLOW}.")
    files = open_weights(folder, torch.device("cpu"), from_pickle)
    with empty_parameters():
        model = UnifiedModel(read_sizes(raw))
    own = model.state_dict()
    named = {name: JANUSFLOW.entries(name, tuple(tensor.shape)) for name, tensor in own.items()}
    for name in [name for name in files.shapes if JANUSFLOW.unused.fullmatch(name)]:
        files.leave_out(name)
    files.check({BEGIN: (1, model.width), **{key: shape for entry in named.values() for key, shape in entry.items()}})
    parameters = dict(model.named_parameters())
    state = {name: files.read(next(iter(entry))) for name, entry in named.items()}
    model.load_state_dict({n: t.to(dtype) if n in parameters else t for n, t in state.items()}, assign=True)
    tokenizer = TextTokenizer.load(folder)
    embedding = model.text.embedding.weight
    with torch.no_grad():
        rows = embedding.clone()
        rows[tokenizer.special.begin_of_image] = files.read(BEGIN)[0].to(rows.dtype)
        embedding.data = rows
    check_image_preparation(folder)
    prompt_format = read_prompt_format(folder, raw, tokenizer)
    return ModelBundle(model.eval(), {LATENTS: image_tokenizer}, tokenizer, prompt_format)


def _flow(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    part = config.get(section)
    if not isinstance(part, Mapping):
        raise ValueError(f"config.json lacks {section}: it is not the config of a whole JanusFlow; download it again.")
    params = dict(part.get("params") or {})
    if section == DECODER and (upsamples := params.get("upsamples", 1)) != 1:
        raise ValueError(f"config.json, {section}: unimm has adapters that double once, not {upsamples} times.")
    return params
