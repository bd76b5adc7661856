"""Projectors: positions are known before an image is there, operations are those of the papers, and a model with any of them
learns, packs, decodes, saves and loads as one with Janus' own does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model, tiny_text_tokenizer
from PIL import Image

from unimm.batch import collate
from unimm.checkpoints.bundle import ModelBundle
from unimm.data.template import PromptFormat, Template, Turn
from unimm.inference.engine import Engine
from unimm.models.lora import LoraConfig, adapted_layers, attach
from unimm.models.unified import UnifiedModel
from unimm.models.vision.projectors import KINDS, PixelShuffle, ProjectorConfig, group_patches
from unimm.models.vision.resamplers import CrossAttention, Resampler, grid_positions
from unimm.runtime.atomic_files import read_json
from unimm.sequence import Sequence
from unimm.training.flops import FlopCount
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig, Optimizers

SMALL = {
    "linear": ProjectorConfig("linear", depth=1),
    "mlp": ProjectorConfig("mlp"),
    "pixel_shuffle": ProjectorConfig("pixel_shuffle"),
    "average_pool": ProjectorConfig("average_pool"),
    "qformer": ProjectorConfig("qformer", num_queries=4, width=16, num_heads=4, depth=3),
    "perceiver": ProjectorConfig("perceiver", num_queries=4, width=16, num_heads=4),
}
"""For an image of 16 patches, and of the tiny model's 4."""

POSITIONS = {"linear": 16, "mlp": 16}
"""Of an image of 16 patches; the others make 4 of them."""


def make(kind: str, **changes: object) -> UnifiedModel:
    """The tiny model with a projector; its images have 4 patches."""
    config = tiny_model(len(tiny_text_tokenizer())).config
    torch.manual_seed(0)
    return UnifiedModel(replace(config, projector=replace(SMALL[kind], **changes))).eval()


def look(template: Template, seed: int) -> Sequence:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return template.chat([Turn("user", (template.look(pixels), "What?")), Turn("assistant", ("red",))])


def template_of(model: UnifiedModel) -> Template:
    return Template(tiny_text_tokenizer(), PromptFormat(), 16, model.num_image_positions)


def test_every_kind_is_here() -> None:
    assert set(SMALL) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_known_and_every_parameter_has_a_gradient(kind: str) -> None:
    """Of images, and of none."""
    torch.manual_seed(0)
    projector = SMALL[kind].build(32, 24)
    features = torch.randn(3, 16, 32)
    found = projector(features)
    assert found.shape == (3, POSITIONS.get(kind, 4), 24) and found.shape[1] == projector.num_positions(16)
    torch.testing.assert_close(found[1:2], projector(features[1:2]), rtol=1e-4, atol=1e-5)  # images do not see each other
    (found - projector(features[:0]).sum()).square().sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
        parameter.grad = None
    none = projector(features[:0])
    none.sum().backward()
    assert none.shape == (0, POSITIONS.get(kind, 4), 24)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projector.parameters())


def test_patches_are_grouped_as_images_are_shuffled_and_pooled() -> None:
    features = torch.randn(2, 16, 3)
    image_NCHW = features.transpose(1, 2).reshape(2, 3, 4, 4)
    shuffled = F.pixel_unshuffle(image_NCHW, 2).reshape(2, 3, 4, 4)  # (N, C, side^2, groups)
    torch.testing.assert_close(group_patches(features, 2), shuffled.permute(0, 3, 2, 1), rtol=0, atol=0)
    pooled = F.avg_pool2d(image_NCHW, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(group_patches(features, 2).mean(2), pooled)
    assert PixelShuffle(2, 3, 8, 2).mlp[0].in_features == 12


def test_attention_is_pytorchs_whichever_way_it_is_computed() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(16, 24, 4), torch.nn.MultiheadAttention(16, 4, kdim=24, vdim=24, batch_first=True)
    with torch.no_grad():
        for name, layer in (("q", ours.q), ("k", ours.k), ("v", ours.v)):
            getattr(theirs, f"{name}_proj_weight").copy_(layer.weight)
        assert theirs.in_proj_bias is not None
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    queries, keys, values = torch.randn(2, 5, 16), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    expected = theirs(queries, keys, values)[0]
    for fused in (True, False):
        ours.fused_attn = fused
        torch.testing.assert_close(ours(queries, keys, values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["qformer", "perceiver"])
def test_the_order_of_patches_counts_only_on_a_grid(kind: str) -> None:
    """Without a grid the patches are a set, as in the papers; with one, their order matters."""
    features, shuffled = torch.randn(1, 16, 32), torch.randperm(16)
    for grid in (True, False):
        torch.manual_seed(0)
        projector = replace(SMALL[kind], grid=grid).build(32, 24)
        same = torch.allclose(projector(features), projector(features[:, shuffled]), atol=1e-5)
        assert same == (not grid)


def test_places_of_a_grid_are_nearest_to_those_of_a_finer_one_around_them() -> None:
    coarse, fine = (grid_positions(count, 32, torch.device("cpu")) for count in (4, 64))
    nearest = (coarse @ fine.T).topk(4).indices.sort().values
    assert nearest.tolist() == [[9, 10, 17, 18], [13, 14, 21, 22], [41, 42, 49, 50], [45, 46, 53, 54]]
    with pytest.raises(ValueError, match="5 places are no square grid"):
        grid_positions(5, 32, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["qformer", "perceiver"])
def test_on_a_grid_a_query_first_looks_at_its_own_cell(kind: str) -> None:
    """Sixteen queries of 64 patches: half of the attention, which is even without a grid."""
    for grid, least, most in ((True, 0.4, 0.9), (False, 0.05, 0.07)):
        torch.manual_seed(0)
        projector = ProjectorConfig(kind, num_queries=16, num_heads=1, grid=grid).build(64, 8)
        found: list[torch.Tensor] = []
        layer = projector.blocks[0].cross
        layer.register_forward_pre_hook(lambda layer, given, out=found: out.append(layer.q(given[0]) @ layer.k(given[1]).mT))
        projector(torch.randn(4, 64, 64))
        own = torch.zeros(16, 64)
        for query in range(16):
            rows, columns = 2 * (query // 4), 2 * (query % 4)
            own[query].view(8, 8)[rows : rows + 2, columns : columns + 2] = 1
        assert least < ((found[0][..., :64] / 64**0.5).softmax(-1) * own).sum(-1).mean() < most


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProjectorConfig("zebra"), "Unknown projector 'zebra': use linear, mlp, "),
        (ProjectorConfig("pixel_shuffle", side=3), "4 patches do not divide into squares of 3 x 3"),
        (ProjectorConfig("qformer", num_heads=5), "32 wide .* cannot have 5 heads"),
        (ProjectorConfig("perceiver", width=30, num_heads=5), "no multiple of 4, which its grid needs"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_model_is_made(config: ProjectorConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnifiedModel(replace(tiny_model(300).config, projector=config))


def test_a_linear_projector_has_one_layer() -> None:
    with pytest.raises(ValueError, match="has one layer, not 2: add depth=1, or use mlp"):
        ProjectorConfig("linear")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_it_packs_as_alone_and_counts_its_operations(kind: str) -> None:
    model = make(kind)
    some = [look(template_of(model), seed) for seed in range(3)]
    with torch.no_grad():
        packed, apart = model(collate([some])), model(collate([[one] for one in some]))
    for port, sums in packed.items():
        torch.testing.assert_close(sums.loss, apart[port].loss, rtol=1e-4, atol=1e-4)
    count = FlopCount(model)
    assert count.of(collate([some])) == sum(count.of(collate([[one]])) for one in some)
    assert sum(len(port.path()) == len(port.passes(collate([some]))) for port in model.ports.values()) == 3
    objective = Likelihood(model.train())
    optimizers = Optimizers(objective.parts(), {"projector": 1.0}, OptimizerConfig(muon_lr=0.02), model.hidden_parts())
    sums = objective(collate([some]))
    sums["text"].loss.backward()
    before = [parameter.detach().clone() for parameter in model.pixels.projector.parameters()]
    optimizers.step(torch.tensor(1.0))
    assert all(not torch.equal(a, b) for a, b in zip(before, model.pixels.projector.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_it_travels_with_its_bundle_and_answers_in_a_batch_as_alone(kind: str, tiny_engine: Engine, tmp_path: Path) -> None:
    """What can be a Janus is one, a linear projector, too; the others lie in our own form."""
    bundle = replace(tiny_engine.bundle, model=make(kind))
    reasons = bundle.save(tmp_path / "model")
    config = read_json(tmp_path / "model" / "config.json") or {}
    is_janus = kind in ("linear", "mlp")
    assert (config["model_type"] == "janus") == is_janus == (not reasons) and all(f"'{kind}'" in one for one in reasons)
    processor = read_json(tmp_path / "model" / "processor_config.json") or {}
    positions = 1 if kind in ("pixel_shuffle", "average_pool") else 4
    assert processor["num_image_tokens"] == bundle.model.num_image_positions == positions
    again = ModelBundle.load(tmp_path / "model")
    assert again.model.config.projector == (ProjectorConfig("mlp", 1) if kind == "linear" else bundle.model.config.projector)
    engine = Engine(again)
    images = [Image.fromarray(np.full((16, 16, 3), tone, dtype=np.uint8)) for tone in (20, 200)]
    questions = ["What?", "Which colour is it?"]
    together = engine.answer(images, questions, max_new_tokens=5)
    assert together == [engine.answer(one, asked, max_new_tokens=5) for one, asked in zip(images, questions, strict=True)]
    assert together == Engine(bundle).answer(images, questions, max_new_tokens=5)


def test_queries_are_no_matrix_to_muon_and_layers_take_adapters() -> None:
    model = make("qformer")
    projector = model.pixels.projector
    assert isinstance(projector, Resampler)
    optimizers = Optimizers(model.parts(), {"projector": 1.0}, OptimizerConfig(muon_lr=0.02), model.hidden_parts())
    moved_by = {id(p): name for name, one in optimizers.all.items() for group in one.param_groups for p in group["params"]}
    assert moved_by[id(projector.queries.weight)] == "adamw" and moved_by[id(projector.blocks[0].cross.k.weight)] == "muon"
    assert list(model.pixels.units()[-3:]) == list(projector.blocks)
    attach(model, LoraConfig(targets=("projector.k",)))
    assert set(adapted_layers(model)) == {f"pixels.projector.blocks.{number}.cross.k" for number in (0, 2)}
