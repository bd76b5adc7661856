"""Images drawn by a flow: the same alone and in any batch, beside texts and codes, with previews, saved and loaded."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flows import make_engine, make_vae
from typer.testing import CliRunner

from unimm.checkpoints.bundle import ModelBundle
from unimm.cli.app import app
from unimm.data.records import LATENTS
from unimm.eval.tasks.reconstruction import ShapesReconstruction
from unimm.inference.engine import Engine
from unimm.models.image_tokenizer.gaussian import GaussianConfig
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.runtime.provenance import carried, read_provenance

FEW = {"drawing": "latents", "steps": 3}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def arrays(images: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in images]


def same(one: Any, other: Any) -> bool:
    """But for a level of 255, where rows share products."""
    return all(abs(a - b).max() <= 1 for a, b in zip(arrays(one), arrays(other), strict=True))


def test_an_image_is_the_same_alone_and_in_any_batch(engine: Engine) -> None:
    together = engine.generate_images(["red", "a blue square"], num_images=2, seed=5, **FEW)
    assert [len(images) for images in together] == [2, 2] and together[0][0].size == (16, 16)
    assert same(engine.generate_images("a blue square", 1, 5, first_index=1, **FEW), [together[1][1]])
    assert not same([together[0][0]], [together[0][1]])
    for change in ({"solver": "heun"}, {"steps": 5}, {"guidance_scale": 1.0}, {"seed": 6}):
        assert not same(engine.generate_images("red", **{"seed": 5, **FEW, **change}), [together[0][0]]), change
    said = carried(together[1][1])
    assert said is not None and (said["seed"], said["index"], said["prompt"]) == (5, 1, "a blue square")
    assert said["settings"] == {"guidance_scale": 2.0, "drawing": "latents", "steps": 3, "solver": "euler"}


def test_texts_codes_and_latents_share_the_engine(engine: Engine) -> None:
    picture = np.full((16, 16, 3), 90, np.uint8)

    async def last(seed: int, settings: dict[str, Any]) -> Any:
        images = None
        async for progress in engine.astream_images("red", seed=seed, preview_every=0, **settings):
            images = progress.images if progress.is_final else images
        return images

    async def both() -> list[Any]:
        answer = asyncio.to_thread(engine.answer, picture, "What?", max_new_tokens=4)
        return await asyncio.gather(last(1, FEW), last(2, {"drawing": "codes"}), answer)

    drawn, coded, answer = asyncio.run(both())
    assert same(drawn, engine.generate_images("red", seed=1, **FEW))
    assert same(coded, engine.generate_images("red", seed=2)) and answer == engine.answer(picture, "What?", max_new_tokens=4)


def test_previews_say_what_the_image_will_be(engine: Engine) -> None:
    """After so many positions' worth of passes, which come two at a time where nothing else is decoded."""
    *steps, last = engine.stream_images("red", 2, seed=3, preview_every=4, drawing="latents", steps=8)
    done = [one.step for one in steps]
    assert done == sorted(set(done)) and done[0] > 0 and done[-1] < 16 and last.step == last.num_steps == 16
    final, previews = last.images, [one.images for one in steps if one.images is not None]
    assert last.is_final and final is not None and 2 <= len(previews) <= 4 and last.codes.numel() == 0
    assert same(final, engine.generate_images("red", 2, 3, drawing="latents", steps=8))
    far = [np.mean([abs(a - b).mean() for a, b in zip(arrays(one), arrays(final), strict=True)]) for one in previews]
    assert far[0] > far[-1] > 0
    assert all(one.images is None for one in [*engine.stream_images("red", preview_every=0, **FEW)][:-1])


def test_a_flow_is_looked_into(engine: Engine, tiny_engine: Engine) -> None:
    """Evenly spread passes, from the first to the last one, which is the image; each nearer to it than the one before."""
    found = engine.trace_flow("red", 3, 3, steps=8)
    assert [(one.number, one.num_passes) for one in found] == [(1, 8), (5, 8), (8, 8)]
    assert same([found[-1].image], engine.generate_images("red", 1, 3, drawing="latents", steps=8))
    assert all(one.latents.shape == (2, 8, 8) for one in found)
    far = [float((one.latents - found[-1].latents).abs().mean()) for one in found]
    assert far[0] > far[1] > far[2] == 0
    assert [one.number for one in engine.trace_flow("red", 3, 99, steps=2, solver="heun")] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="num_pictures"):
        engine.trace_flow("red", num_pictures=0)
    with pytest.raises(ValueError, match="draws by \"codes\", not by 'latents'"):
        tiny_engine.trace_flow("red")


def test_a_model_without_codes_is_saved_and_loaded_and_draws_as_before(tmp_path: Path) -> None:
    engine = make_engine(codes=False)
    assert engine.bundle.drawing_ways == ("latents",) and engine.num_drawn_positions() == 16
    drawn = engine.generate_images("red", seed=1)
    engine.save(tmp_path / "model")
    again = Engine(ModelBundle.load(tmp_path / "model"))
    assert again.bundle.flow.steps == 4 and list(again.bundle.image_tokenizers) == ["latents"]
    assert all(np.array_equal(a, b) for a, b in zip(arrays(again.generate_images("red", seed=1)), arrays(drawn), strict=True))
    words = ["generate", "red", "--model", str(tmp_path / "model"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "--steps", "2", "--seed", "1", "--out", str(tmp_path / "red.png")])
    assert result.exit_code == 0, result.output
    said = read_provenance(tmp_path / "red.png")
    assert said is not None and said["settings"]["steps"] == 2
    words = ["generate", "--from", str(tmp_path / "red.png"), *words[2:], "--out", str(tmp_path / "b.png")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "red.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match="This model draws by \"latents\", not by 'codes'"):
        again.generate_codes("red")
    with pytest.raises(ValueError, match="no codes of drawing='latents': leave it out"):
        again.generate_codes("red", drawing="latents")


def test_both_ways_are_saved(engine: Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "model")
    again = Engine(ModelBundle.load(tmp_path / "model"))
    assert again.bundle.drawing_ways == ("codes", "latents") and again.model_hash == engine.model_hash
    assert same(again.generate_images("red", **FEW), engine.generate_images("red", **FEW))
    assert same(again.generate_images("red"), engine.generate_images("red", drawing="codes"))
    other = replace(again.bundle, image_tokenizers={**again.bundle.image_tokenizers, LATENTS: make_vae()})
    assert Engine(other).model_hash == engine.model_hash


def test_bad_requests_say_what_is_wrong(engine: Engine, tiny_engine: Engine) -> None:
    for settings, match in (
        ({"drawing": "oil"}, 'draws by "codes" or "latents", not by \'oil\''),
        ({**FEW, "temperature": 0.5}, "A flow has guidance_scale, steps and solver, and no temperature"),
        ({**FEW, "guidance_interval": (0.0, 0.5)}, "no guidance_interval"),
        ({**FEW, "steps": 0}, "steps is a whole number of at least 1"),
        ({**FEW, "solver": "rk4"}, "solver is euler or heun"),
        ({**FEW, "redraw": 1}, "redraw mends codes"),
        ({"steps": 4}, "steps is of a flow, and this image is drawn by codes"),
    ):
        with pytest.raises(ValueError, match=match):
            engine.generate_images("red", **settings)
    with pytest.raises(ValueError, match="draws by \"codes\", not by 'latents'"):
        tiny_engine.generate_images("red", drawing="latents")
    with pytest.raises(ValueError, match=r"The model draws latents of \(2, 8, 8\)"):
        vae = ImageTokenizer(ImageTokenizerConfig(16, 32, (1, 1, 1), 1, 32, quantizer=GaussianConfig(2)))
        replace(engine.bundle, image_tokenizers={**engine.bundle.image_tokenizers, LATENTS: vae})


def test_reconstruction_goes_through_the_latents(engine: Engine) -> None:
    """Where it is asked for, or the model has nothing else; then there are no codes to count."""
    result = ShapesReconstruction(3, way="latents").run(engine, lambda example: None)
    alone = ShapesReconstruction(3).run(make_engine(codes=False), lambda example: None)
    assert result.measures.keys() == alone.measures.keys() == {"psnr", "ssim"}
    assert result.measures["psnr"] == pytest.approx(alone.measures["psnr"])
    coded = ShapesReconstruction(3).run(engine, lambda example: None)
    assert "codebook_usage" in coded.measures and coded.measures["psnr"] != pytest.approx(result.measures["psnr"])
