"""Latents: an image written by a flow learns, packs and decodes as everything else does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_text_tokenizer
from fake_gpu import GPU, Looks, memory, moved
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from unimm.batch import Elements, collate
from unimm.checkpoints.bundle import ModelBundle
from unimm.data.template import PromptFormat, Template, Turn
from unimm.inference.decode.request import Branch, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.models.attention import mask_of
from unimm.models.ports.latents import LatentsConfig, LatentsPort
from unimm.models.unified import UnifiedModel
from unimm.runtime.counter_noise import normal, stream_key
from unimm.sequence import Kind, Segment, Sequence
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig, Optimizers
from unimm.training.trainable_parts import Stage, stage_table

CONFIG = LatentsConfig(channels=2, latent_size=4, patch_size=2, width=16, num_blocks=1)
WORDS = ("red", "green")


@pytest.fixture
def model() -> UnifiedModel:
    """The tiny model, which also writes images as 2 x 4 x 4 latents, in 5 positions."""
    config = tiny_model(len(tiny_text_tokenizer())).config
    torch.manual_seed(0)
    return UnifiedModel(replace(config, ports={"latents": CONFIG})).eval()


@pytest.fixture
def template() -> Template:
    return Template(tiny_text_tokenizer(), PromptFormat(), 16, 4)


def picture(number: int) -> np.ndarray:
    """(2, 4, 4): one half is bright, by the number the left or the right one."""
    latents = np.full((2, 4, 4), -1.0, np.float32)
    latents[:, :, 2 * number : 2 * number + 2] = 1.0
    return latents


def prompt(word: str, template: Template, *last: Segment) -> Sequence:
    special = template.tokenizer.special
    text = Segment.text(template.tokenizer.encode(word), condition="text")
    return Sequence((Segment.text([special.bos]), text, *last))


def learned(number: int, template: Template, key: int = 0) -> Sequence:
    return prompt(WORDS[number], template, Segment.array(Kind.LATENTS, CONFIG.to_elements(picture(number), key), learn=True))


def asked(word: str, template: Template) -> Sequence:
    return prompt(word, template, Segment.blank(Kind.LATENTS, CONFIG.num_elements))


def port_of(model: UnifiedModel) -> LatentsPort:
    port = model.predicted_ports[Kind.LATENTS]
    assert isinstance(port, LatentsPort)
    return port


def filled(engine: Engine, sequences: list[Sequence], scale: float = 1.0, **settings: object) -> list[np.ndarray]:
    requests = [Request(one, Sampling(seed=3, index=index), scale) for index, one in enumerate(sequences)]
    return [np.asarray(one) for one in engine.decoder.fill([replace(one, filler_settings=settings) for one in requests])]


def test_noise_is_normal_and_has_no_state() -> None:
    keys = torch.tensor([stream_key(0, index) for index in range(4)])
    drawn = normal(keys, 2000)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01 and abs(np.corrcoef(drawn)[0, 1:]).max() < 0.08
    assert torch.equal(normal(keys[2:3], 2000), drawn[2:3]) and torch.equal(normal(keys, 10), drawn[:, :10])


def test_elements_hold_the_latents() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    elements = CONFIG.to_elements(latents, key=7)
    assert elements.shape == (5, 8) and elements[0].tolist() == [7, *[0] * 7]
    assert np.array_equal(CONFIG.to_latents(torch.from_numpy(elements)).numpy(), latents)
    assert elements[2].reshape(2, 2, 2).tolist() == latents[:, :2, 2:].tolist()
    with pytest.raises(ValueError, match=r"writes latents of \(2, 4, 4\), not \(4, 2, 2\)"):
        CONFIG.to_elements(latents.reshape(4, 2, 4)[:, :, :2])


def test_it_learns_to_draw_what_it_is_told(model: UnifiedModel, template: Template, tiny_engine: Engine) -> None:
    objective = Likelihood(model.train())
    parts = objective.parts()
    assert {"latents_in", "latents_out"} < set(parts)
    stage_table(parts, Stage("all", dict.fromkeys(parts, 1.0)), sum(p.numel() for p in model.parameters()))  # they add up
    optimizers = Optimizers(parts, dict.fromkeys(parts, 1.0), OptimizerConfig(lr=3e-3), model.hidden_parts())
    losses = []
    for step in range(100):
        batch = collate([[learned(number, template, 100 * step + key) for number in (0, 1) for key in range(4)]])
        sums = objective(batch)["latents"]
        assert float(sums.count) == 8 * 4 == float(objective.counts(batch)["latents"])
        (sums.loss / sums.count).backward()
        losses.append(float(sums.loss.detach() / sums.count))
        optimizers.step(torch.tensor(1.0))
    assert np.mean(losses[-10:]) < 0.5 * losses[0], (losses[0], losses[-10:])
    engine = Engine(replace(tiny_engine.bundle, model=model.eval()))
    for solver, num_steps in (("euler", 8), ("heun", 4)):
        drawn = filled(engine, [asked(word, template) for word in (*WORDS, *WORDS)], num_steps=num_steps, solver=solver)
        for number, elements in enumerate(drawn):
            latents = CONFIG.to_latents(torch.from_numpy(elements)).numpy()
            errors = [np.abs(latents - picture(one)).mean() for one in (0, 1)]
            assert np.argmin(errors) == number % 2 and min(errors) < 0.6, (solver, errors)


def test_packed_rows_are_separate_rows(model: UnifiedModel, template: Template) -> None:
    given = Segment.array(Kind.LATENTS, CONFIG.to_elements(picture(1)))
    some = [learned(0, template, 5), prompt("red", template, given, Segment.text([5, 6], learn=True)), learned(1, template, 9)]
    some.append(template.draw("red", np.array([1, 2, 3, 4])))
    with torch.no_grad():
        packed, apart = model(collate([some[:2], some[2:]])), model(collate([[one] for one in some]))
        again, other = model(collate([[some[0]]])), model(collate([[learned(0, template, 6)]]))
    for kind in (Kind.TEXT, Kind.CODES, Kind.LATENTS):
        assert packed[kind].loss == pytest.approx(float(apart[kind].loss), rel=1e-4)
        assert packed[kind].count == apart[kind].count > 0
    assert again[Kind.LATENTS].loss == model(collate([[some[0]]]))[Kind.LATENTS].loss != other[Kind.LATENTS].loss


def test_a_batch_without_images_gives_every_parameter_a_gradient_of_zero(model: UnifiedModel, template: Template) -> None:
    batch = collate([[template.draw("red", np.array([1, 2, 3, 4]))]])
    torch.stack([one.loss for one in model.train()(batch).values()]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name.startswith("latents.")}
    assert len(gradients) > 20 and all(one is not None and not one.any() for one in gradients.values())


def by_plain_passes(model: UnifiedModel, sequence: Sequence, key: tuple[int, int], branches: tuple[Branch, ...], **settings):
    """Filled in by passes over whole sequences, without a cache."""
    filler = port_of(model).filler(sequence.segments[-1], key, **settings)
    pad = tiny_text_tokenizer().special.pad
    while not filler.is_done:
        own, hidden = filler.inputs(), []
        for branch in branches:
            given = model.embed(collate([[sequence.given.unconditioned(pad, branch.drop)]]))[0]
            embeddings = torch.cat([given, own])[None]
            longer = collate([[Sequence((Segment.text(np.zeros(embeddings.shape[1])),))]])
            hidden.append(model.hidden(embeddings, mask_of("sdpa", longer), longer.positions)[:, len(given) :])
        filler.advance(torch.cat(hidden), torch.tensor([branch.weight for branch in branches]))
    return filler.content


def test_a_batch_with_texts_and_codes_fills_in_what_plain_passes_do(
    model: UnifiedModel, template: Template, tiny_engine: Engine
) -> None:
    engine = Engine(replace(tiny_engine.bundle, model=model))
    with torch.no_grad():
        for parameter in model.predicted_ports[Kind.LATENTS].parameters():
            parameter.add_(0.05 * normal(torch.tensor([parameter.numel()]), parameter.numel()).view(parameter.shape))
    question = template.chat([Turn("user", ("What?",))], 5)
    sequences = [asked("red", template), question, template.draw("red", num_codes=4), asked("a blue square", template)]
    branches = (Branch(weight=2.0), Branch(frozenset({"text"}), -1.0))
    sampling = [Sampling(seed=3, index=index) for index in range(4)]
    settings = {"num_steps": 3, "solver": "heun"}
    for guidance in ((Branch(),), branches):
        requests = [
            Request(one, own, branches=guidance if one.segments[-1].kind == Kind.LATENTS else ())
            for one, own in zip(sequences, sampling, strict=True)
        ]
        requests = [replace(one, filler_settings=settings) if one.blank.kind == Kind.LATENTS else one for one in requests]
        before = engine.stats().fill_passes
        together = engine.decoder.fill(requests)
        assert 0 < engine.stats().fill_passes - before <= 12
        with torch.no_grad():
            for place in (0, 3):
                plain = by_plain_passes(model, sequences[place], (3, place), guidance, **settings)
                (alone,) = engine.decoder.fill([requests[place]])
                np.testing.assert_allclose(np.asarray(together[place]), plain, atol=2e-4)
                np.testing.assert_allclose(np.asarray(alone), plain, atol=2e-4)
        assert together[1:3] == [engine.decoder.fill([requests[place]])[0] for place in (1, 2)]


def test_it_is_saved_and_loaded(model: UnifiedModel, template: Template, tiny_engine: Engine, tmp_path: Path) -> None:
    """Without leave to import other packages' code: the port is ours."""
    reasons = replace(tiny_engine.bundle, model=model).save(tmp_path / "model")
    assert any("latents" in reason for reason in reasons)
    again = ModelBundle.load(tmp_path / "model").model
    assert again.config.ports == {"latents": CONFIG}
    batch = collate([[learned(0, template, 5)]])
    with torch.no_grad():
        assert torch.equal(model(batch)[Kind.LATENTS].loss, again(batch)[Kind.LATENTS].loss)


def test_its_adapters_have_the_names_and_sizes_of_janusflow() -> None:
    """Of `vision_gen_enc_model` and `vision_gen_dec_model` (janus/janusflow/models/uvit.py), at the sizes of JanusFlow-1.3B."""

    def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
        sizes = {"depthwise.weight": (width, 1, 7, 7), "depthwise.bias": (width,), "norm.weight": (width,)}
        sizes |= {"channelwise_linear_1.weight": (4 * width, width), "channelwise_linear_1.bias": (4 * width,)}
        sizes |= {"channelwise_norm.weight": (1, 1, 1, 4 * width), "channelwise_norm.bias": (1, 1, 1, 4 * width)}
        sizes |= {"channelwise_linear_2.weight": (width, 4 * width), "channelwise_linear_2.bias": (width,)}
        sizes |= {"cond_embeds_mapper.weight": (2 * width, 2048), "cond_embeds_mapper.bias": (2 * width,)}
        return {f"mid_block.res_blocks.{name}.{key}": size for key, size in sizes.items()}

    with torch.device("meta"):
        port = LatentsPort(LatentsConfig(), 2048)
    encoder, decoder = ({k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (port.encoder, port.decoder))
    ends = {"time_embed.linear_1.weight": (2048, 768), "time_embed.linear_1.bias": (2048,)}
    ends |= {"time_embed.linear_2.weight": (2048, 2048), "time_embed.linear_2.bias": (2048,)}
    ends |= {"in_conv.weight": (768, 4, 2, 2), "in_conv.bias": (768,)}
    assert encoder == {**ends, **block("0", 768), **block("1", 768)}
    ends = {"input_norm.weight": (768,), "out_convs.0.norm.weight": (1536,)}
    ends |= {"out_convs.0.unpatch_conv.weight": (16, 1536, 1, 1), "out_convs.0.unpatch_conv.bias": (16,)}
    assert decoder == {**ends, **block("0", 1536), **block("1", 1536)}
    assert port.config.num_elements == 577


def test_bad_requests_say_what_is_wrong(model: UnifiedModel, template: Template, tiny_engine: Engine) -> None:
    engine = Engine(replace(tiny_engine.bundle, model=model))
    codes, text = template.draw("red", num_codes=4), Segment.text([5])
    for sequence, settings, match in (
        (asked("red", template), {"solver": "rk4"}, "solver is euler or heun, not 'rk4'"),
        (asked("red", template), {"num_steps": 0}, "num_steps"),
        (asked("red", template), {"top_k": 5}, "num_steps and solver, and no top_k"),
        (codes, {"num_steps": 5}, "CODES is chosen element by element, and has no num_steps"),
        (Sequence((text, Segment.blank(Kind.LATENTS, 4))), {}, "an image as 5 elements of LATENTS, not as 4"),
        (Sequence((text, Segment.array(Kind.LATENTS, np.zeros((3, 8))), Segment.blank(Kind.TEXT, 2))), {}, "has 5 elements"),
    ):
        with pytest.raises(ValueError, match=match):
            filled(engine, [sequence], **settings)
    for words, match in (({"latent_size": 5}, "not a multiple of patch_size"), ({"width": 3}, "width is even")):
        with pytest.raises(ValueError, match=match):
            LatentsConfig(**words)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_on_a_gpu_nothing_but_the_last_pass_waits(solver: str) -> None:
    """Shown by fake tensors: learning and drawing ask nothing of the host, and nothing comes from main memory."""
    with FakeTensorMode(), Looks() as looks:
        port = moved(LatentsPort(CONFIG, 32), torch.float32)
        elements, weights = torch.zeros(10, *port.element_shape, device=GPU), torch.ones(10, device=GPU)
        hidden_nD, weights_G = torch.zeros(10, 32, device=GPU), torch.ones(2, device=GPU)
        filler = port.filler(Segment.blank(Kind.LATENTS, CONFIG.num_elements), (3, 1), num_steps=2, solver=solver)
        looks.known = {memory(one) for one in [*port.parameters(), elements, weights, hidden_nD, weights_G, filler._x]}
        with looks.looking():
            assert port.embed(Elements(elements, weights)).shape == (10, 32)
            sums = port.loss(hidden_nD, elements, weights)
            for _ in range(filler.total_passes - 1):
                assert filler.inputs().shape == (CONFIG.num_elements, 32)
                filler.advance(hidden_nD.view(2, 5, 32), weights_G)
        assert not looks.wrong, looks.wrong[:5]
        assert {one.device.type for one in sums} == {"cuda"}
