"""A third kind that is predicted, and a projector with fewer positions than patches, from a package of somebody else's: they
learn, pack, decode, save and load as ours do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_text_tokenizer
from stripes.data import COLOURS, Stripes
from stripes.port import NUMBERS, NumbersConfig, Palette, palette_prompt
from stripes.projector import ShuffleConfig
from users_files import make_image_folder

from unimm.batch import collate
from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.compose import compose_config
from unimm.cli.learner import open_learner
from unimm.data.template import PromptFormat, Template, Turn
from unimm.inference.engine import Engine
from unimm.models.attention import mask_of
from unimm.models.lora import LoraConfig, attach
from unimm.models.ports.base import PredictedPort
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import read_json
from unimm.sequence import Kind, Segment, Sequence
from unimm.training.flops import FlopCount
from unimm.training.objectives.likelihood import Likelihood
from unimm.training.optimizers import OptimizerConfig, Optimizers
from unimm.training.trainable_parts import Stage, stage_table

STRIPES = Stripes(16)


@pytest.fixture
def model() -> UnifiedModel:
    """The tiny model with a port of the package, and its projector: an image of 4 patches takes 1 position."""
    config = tiny_model(len(tiny_text_tokenizer())).config
    torch.manual_seed(0)
    return UnifiedModel(replace(config, projector=ShuffleConfig(), ports={"numbers": NumbersConfig()}))


@pytest.fixture
def template(model: UnifiedModel) -> Template:
    return Template(tiny_text_tokenizer(), PromptFormat(), 16, model.num_image_positions)


def samples(template: Template) -> list[Sequence]:
    rng = np.random.default_rng(0)
    palettes = [Palette()(STRIPES[index], template, rng) for index in range(3)]
    given = Sequence((*palettes[0].segments[:3], Segment.array(NUMBERS, np.ones((2, 3))), Segment.text([5, 6], learn=True)))
    return [*palettes, given, template.draw("red", np.array([1, 2, 3, 4]))]


def port_of(model: UnifiedModel) -> PredictedPort:
    return model.predicted_ports[NUMBERS]


def fill(model: UnifiedModel, sequence: Sequence) -> Sequence:
    """The blank filled in by the port's own filler, by plain passes of the model."""
    filler = port_of(model).filler(sequence.segments[-1], (0, 0))
    batch = collate([[sequence.given]])
    while not filler.is_done:
        given, own = model.embed(batch)[0], filler.inputs()
        embeddings = torch.cat([given, own])[None]
        longer = collate([[Sequence((Segment.text(np.zeros(embeddings.shape[1])),))]])
        hidden = model.hidden(embeddings, mask_of("sdpa", longer), longer.positions)
        filler.advance(hidden[:, len(given) :], torch.ones(1))
    return sequence.fill(filler.content)


def test_it_learns_beside_text_and_codes_and_is_filled_in(model: UnifiedModel, template: Template) -> None:
    objective = Likelihood(model.train())
    batch = collate([[one] for one in samples(template)])
    objective.check(batch)
    parts, counts = objective.parts(), objective.counts(batch)
    assert {name: float(count) for name, count in counts.items()} == {"text": 2, "codes": 4, "numbers": 6}
    assert {"numbers_in", "numbers_out"} < set(parts) and model.hidden_parts() == ("trunk", "vision", "projector")
    stage_table(parts, Stage("all", dict.fromkeys(parts, 1.0)), sum(p.numel() for p in model.parameters()))  # they add up
    optimizers = Optimizers(parts, dict.fromkeys(parts, 1.0), OptimizerConfig(lr=3e-3), model.hidden_parts())
    losses = []
    for _ in range(80):
        sums = objective(batch)
        losses.append({name: float(one.loss.detach() / one.count) for name, one in sums.items()})
        torch.stack([one.loss / one.count for one in sums.values()]).sum().backward()
        optimizers.step(torch.tensor(1.0))
    assert all(losses[-1][name] < 0.3 * losses[0][name] for name in counts), (losses[0], losses[-1])
    assert losses[-1]["numbers"] < 0.02
    with torch.no_grad():
        for index in range(3):
            filled = fill(model.eval(), palette_prompt(STRIPES[index], template)).segments[-1]
            expected = np.array([COLOURS[name] for name in STRIPES[index].facts]) / 255
            assert filled.kind == NUMBERS and not filled.is_open
            np.testing.assert_allclose(np.asarray(filled.content), expected, atol=0.25)


def test_packed_rows_are_separate_rows(model: UnifiedModel, template: Template) -> None:
    model.eval()
    some = samples(template)
    with torch.no_grad():
        packed, apart = model(collate([some[:2], some[2:]])), model(collate([[one] for one in some]))
    for kind in (Kind.TEXT, Kind.CODES, NUMBERS):
        assert packed[kind].loss == pytest.approx(float(apart[kind].loss), rel=1e-4)
        assert packed[kind].count == apart[kind].count > 0
    count = FlopCount(model)
    assert count.of(collate([some])) == sum(count.of(collate([[one]])) for one in some)
    assert count.of(collate([some[:1]])) > count.of(collate([[Sequence(some[0].segments[:3])]]))


def test_a_batch_without_it_moves_nothing_of_it_and_one_that_nobody_knows_is_refused(
    model: UnifiedModel, template: Template
) -> None:
    batch = collate([[template.draw("red", np.array([1, 2, 3, 4]))]])
    torch.stack([one.loss for one in model(batch).values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != name.startswith(("numbers.", "pixels.")) or name == "text.head.weight", name
    plain = tiny_model(len(tiny_text_tokenizer()))
    with pytest.raises(ValueError, match="reads PIXELS, TEXT, CODES, not NUMBERS"):
        Likelihood(plain).check(collate([[Sequence((Segment.text([1]), Segment.array(NUMBERS, np.ones((1, 3)))))]]))
    for ports, match in (
        ({"text": NumbersConfig()}, "cannot be named 'text'"),
        ({"one": NumbersConfig(), "two": NumbersConfig()}, "NUMBERS, which has a port already"),
    ):
        with pytest.raises(ValueError, match=match):
            UnifiedModel(replace(plain.config, ports=ports))


def test_it_is_saved_and_loaded(model: UnifiedModel, template: Template, tiny_engine: Engine, tmp_path: Path) -> None:
    bundle = replace(tiny_engine.bundle, model=model.eval())
    reasons = bundle.save(tmp_path / "model")
    assert all(any(part in reason for reason in reasons) for part in ("a port 'numbers' (NumbersConfig)", "'ShuffleConfig'"))
    config = read_json(tmp_path / "model" / "config.json")
    assert config is not None and config["model"]["ports"]["numbers"] == {"_target_": "stripes.port.NumbersConfig", "size": 3}
    processor = read_json(tmp_path / "model" / "processor_config.json")
    assert processor is not None and processor["num_image_tokens"] == 1
    again = ModelBundle.load(tmp_path / "model", allow_code=True)
    assert again.model.config.ports == model.config.ports and again.model.config.projector == model.config.projector
    batch = collate([samples(template)])
    with torch.no_grad():
        ours, theirs = model(batch), again.model(batch)
    assert all(torch.equal(ours[kind].loss, theirs[kind].loss) for kind in ours)


def test_a_model_whose_images_take_fewer_positions_answers(
    model: UnifiedModel, tiny_engine: Engine, template: Template
) -> None:
    """Batched as alone, and with an adapter on the projector's layers."""
    engine = Engine(replace(tiny_engine.bundle, model=model.eval()))
    assert engine.template.num_positions == 1
    images, questions = [STRIPES[index].image for index in (0, 4)], ["What?", "Which colour is it?"]
    together = engine.answer(images, questions, max_new_tokens=5)
    assert together == [engine.answer(one, asked, max_new_tokens=5) for one, asked in zip(images, questions, strict=True)]
    assert engine.generate_codes("red").shape == (1, 4)
    with pytest.raises(ValueError, match="The vision tower looks at"):
        engine.fill([Sequence((Segment.text([0]), Segment.look(np.zeros((3, 5, 5)), 1), Segment.blank(Kind.TEXT, 2)))])
    attach(model, LoraConfig(targets=("projector",)))


def test_it_is_decoded_beside_text_and_codes(model: UnifiedModel, template: Template, tiny_engine: Engine) -> None:
    """In one call of the engine, each as it is alone."""
    engine = Engine(replace(tiny_engine.bundle, model=model.eval()))
    question = template.chat([Turn("user", (template.look(STRIPES[1].image), "What?"))], 5)
    asked = [
        palette_prompt(STRIPES[0], template),
        question,
        template.draw("red", num_codes=4),
        palette_prompt(STRIPES[5], template),
    ]
    together = [one.segments[-1] for one in engine.fill(asked)]
    alone = [engine.fill([one])[0].segments[-1] for one in asked]
    assert [one.kind for one in together] == [NUMBERS, Kind.TEXT, Kind.CODES, NUMBERS] and together[1:3] == alone[1:3]
    with torch.no_grad():
        for index in (0, 3):
            plain = np.asarray(fill(model, asked[index]).segments[-1].content)
            for filled in (together[index], alone[index]):
                np.testing.assert_allclose(np.asarray(filled.content), plain, atol=1e-4)


def test_a_model_that_draws_nothing(template: Template, tiny_engine: Engine, tmp_path: Path) -> None:
    """Without the port of codes everything else works: it learns text and images, answers, is saved and loaded."""
    config = replace(tiny_model(len(tiny_text_tokenizer())).config, codes=None)
    silent = UnifiedModel(config)
    assert [kind.name for kind in silent.ports] == ["PIXELS", "TEXT"] and "code_head" not in silent.parts()
    batch = collate([[Sequence((Segment.look(np.zeros((3, 16, 16)), 4), Segment.text([1, 2], learn=True)))]])
    objective = Likelihood(silent)
    objective.check(batch)
    assert objective(batch)["text"].count == 2 and FlopCount(silent).of(batch) > 0
    with pytest.raises(ValueError, match="not CODES"):
        objective.check(collate([[template.draw("red", np.array([1, 2]))]]))
    bundle = replace(tiny_engine.bundle, model=silent.eval())
    assert any("draws nothing" in reason for reason in bundle.save(tmp_path / "model"))
    engine = Engine(ModelBundle.load(tmp_path / "model"))
    asked = engine.answer(STRIPES[0].image, "What?", max_new_tokens=4)
    assert asked == Engine(bundle).answer(STRIPES[0].image, "What?", max_new_tokens=4)
    with pytest.raises(ValueError, match="draws by nothing, not by 'codes'"):
        engine.generate_codes("red")


def test_a_trained_model_gets_a_further_kind(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a configuration: what it had is taken over, the port's parts are new, and that is said."""
    make_image_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    port = ["+model.ports.numbers._target_=stripes.port.NumbersConfig", "+model.ports.numbers.size=2"]
    words = [*("data=image_folder", "data.folder=photos", "~data.sources.draw"), f"init_from={tiny_folder}"]
    learner = open_learner(compose_config("train", [*words, *port]))
    assert learner.fresh == {"numbers_in", "numbers_out"} and "The port 'numbers' is new to" in learner.notes[0]
    before = ModelBundle.load(tiny_folder).model
    model = learner.bundle.model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert learner.bundle.save("model") == ["it has a port 'numbers' (NumbersConfig), a Janus has text, pixels and codes"]
    again = open_learner(compose_config("train", [*words[:-1], "init_from=model", *port[:1]]))  # whose sizes it has already
    assert again.fresh == set() and again.bundle.model.config.ports == {"numbers": NumbersConfig(2)}
    other = open_learner(
        compose_config("train", [*words[:-1], "init_from=model", *port[:1], "fresh_parts=[numbers_in,numbers_out]"])
    )
    assert other.bundle.model.config.ports == {"numbers": NumbersConfig(3)}
    with pytest.raises(ValueError, match=r"leave model.ports.numbers out, or lora"):
        open_learner(compose_config("train", [*words, *port, "lora=default"]))
