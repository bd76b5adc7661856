"""Pairs without people: near misses, which candidates make a pair, nothing held out, and a run that is killed and goes on."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import make_template
from typer.testing import CliRunner

from unimm.cli.app import app
from unimm.data.preferences import Preference
from unimm.data.readers.preferences import PreferenceJson
from unimm.data.records import DatasetContext
from unimm.data.worlds.drawing import judge
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, make_scene, render
from unimm.data.worlds.shapes import ShapesWorld
from unimm.rewards.guarded import GuardedReward
from unimm.rewards.names import build_reward
from unimm.rewards.near_misses import asks_for_held_out, near_misses, says_less
from unimm.rewards.pair_folder import make_pairs
from unimm.rewards.pair_prompts import PairPrompt, read_prompts
from unimm.rewards.pairs import Candidate, PairMaker, PairSettings, choose_pairs
from unimm.rewards.response import Response

NUM_PROMPTS = 24


class Painter:
    """In place of an engine: draws a scene that a seed gives, with the seed as a code; every third has a held-out pair."""

    model = SimpleNamespace()

    def __init__(self, stop_after: int = 1000) -> None:
        self.calls, self.stop_after, self.prompts = 0, stop_after, []

    def generate_codes(self, prompt, num_images, seed, **_) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.stop_after:
            raise KeyboardInterrupt
        self.prompts += prompt
        return torch.tensor([[[one % 997, one % 3, 0, 0]] for one in seed])

    def decode_codes(self, codes: torch.Tensor) -> list[Image.Image]:
        scenes = [make_scene(5, "held_out" if third == 2 else "train", number) for number, third, *_ in codes.tolist()]
        return [Image.fromarray(render(scene)) for scene in scenes]


def by_blue(responses) -> list[float | None]:
    """A judge that likes blue."""
    return [float(one.drawn[..., 2].mean()) / 40 for one in responses]


def made(folder: Path, stop_after: int = 1000, judge=by_blue, **settings) -> tuple[Painter, Path]:
    engine = Painter(stop_after)
    words = {"num_samples": 6, "num_near_misses": 1, "margin": 0.02, "min_best": 0.0, "both_directions": True, **settings}
    maker = PairMaker(engine, GuardedReward("blue", judge, None), PairSettings(**words))  # pyright: ignore[reportArgumentType]
    asked = read_prompts("shapes", NUM_PROMPTS)
    make_pairs(asked, maker, folder, {"model": "toy"}, "hash", lambda *_: nullcontext(lambda _: None))
    return engine, folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Painter, Path]:
    """A run that was never stopped."""
    return made(tmp_path_factory.mktemp("pairs") / "whole")


def test_near_misses_change_one_thing_and_ask_for_nothing_held_out() -> None:
    rng = np.random.default_rng(0)
    english = near_misses("a red circle and an orange cross", "en", rng, 100)
    assert {"a blue circle and an orange cross", "a circle and an orange cross"} <= set(english)
    assert "an orange circle and a red cross" not in english  # held out
    assert "a red circle and a cross" in english and len(set(english)) == len(english)
    assert "一个蓝色圆形在一个红色三角形的右侧" in near_misses("一个红色圆形在一个蓝色三角形的右侧", "zh", rng, 100)
    assert says_less("a circle and an orange cross", "a red circle and an orange cross", "en")
    assert not any(says_less(one, "一个红色圆形", "zh") for one in ("一个蓝色圆形", "一个红色三角形"))
    assert near_misses("a photograph of my aunt", "en", rng, 3) == near_misses("ein Hund", "de", rng) == []


def test_the_best_and_the_worst_make_a_pair() -> None:
    def some(*scores, **words) -> list[Candidate]:
        return [Candidate(one, [place], of=words.get("of", {}).get(place)) for place, one in enumerate(scores)]

    usual = PairSettings(pairs_a_prompt=2)
    assert choose_pairs(some(0.4, 0.9, None, 0.1, 0.8), usual)[0] == [(1, 3), (4, 0)]
    assert choose_pairs(some(0.9, 0.2, 0.0, of={2: "x", 0: "y"}), usual) == ([], "none is good enough")
    assert choose_pairs(some(1.0, 0.0, 0.0, of={1: "x"}), usual)[0] == [(0, 2)]  # its own mistake before a near miss
    assert choose_pairs(some(0.9, 0.8), usual) == ([], "all are alike")
    assert choose_pairs(some(None, 0.8), usual) == ([], "too few could be judged")


def test_nothing_held_out_is_asked_for_or_learned(whole: tuple[Painter, Path]) -> None:
    """In 24 prompts with their near misses and the pairs of a painter of whose pictures a third hold such out."""
    engine, folder = whole
    assert len(engine.prompts) > 6 * NUM_PROMPTS and not any(map(asks_for_held_out, engine.prompts))
    world = read_prompts("captions", 40)
    assert not any((one.colour, one.form) in HELD_OUT_PAIRS for prompt in world for one in prompt.facts.objects)
    data = PreferenceJson(str(folder / "preferences.jsonl"))
    shown = [image.image for record in map(data.__getitem__, range(len(data))) for image in record.images]
    assert len(shown) > NUM_PROMPTS
    for path in shown:
        found = judge(np.asarray(Image.open(path)), read_prompts("shapes", 1)[0].facts).found  # pyright: ignore
        assert not any((one.colour, one.form) in HELD_OUT_PAIRS for one in found)
    caption = PairPrompt("x", "Describe the image.", "en", ShapesWorld()[0].image, ShapesWorld()[0].facts)
    assert PairMaker._shows_held_out(None, caption, Candidate(1.0, answer="A small orange circle."))  # pyright: ignore


def test_a_run_that_is_killed_goes_on_and_ends_the_same(whole: tuple[Painter, Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "parts", stop_after=2)
    assert not (tmp_path / "parts").exists()
    with pytest.raises(ValueError, match="was begun with another margin"):
        made(tmp_path / "parts", margin=0.5)
    engine, _ = made(tmp_path / "parts")
    assert engine.calls == 1
    assert contents(tmp_path / "parts") == contents(whole[1])
    assert {"best_and_worst.png", "judged.jsonl", "preferences.jsonl", "settings.json"} <= contents(whole[1]).keys()


def test_what_is_written_is_read_as_preferences_in_both_directions(whole: tuple[Painter, Path]) -> None:
    _, folder = whole
    lines = [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]
    data = PreferenceJson(str(folder / "preferences.jsonl"))
    drawn = [line for line in lines if "chosen_codes" in line]
    asked = [line for line in lines if "image" in line]
    assert drawn and asked and all(line["chosen_score"] > line["rejected_score"] for line in drawn)
    assert {line["chosen"] for line in asked} == {"yes", "no"}
    assert len(asked) < 2 * len(drawn)  # a near miss that leaves a word out is still true
    for index in range(len(data)):
        sample = Preference(0.0)(data[index], make_template(), np.random.default_rng(0))
        assert len(sample.sequences) == 2
    assert data.bind(DatasetContext("hash")) is data
    with pytest.raises(ValueError, match="codes of another image tokenizer"):
        data.bind(DatasetContext("other"))


def test_a_judge_that_fails_or_finds_all_alike_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Of 24 prompts there is no pair .24 times all are alike."):
        made(tmp_path / "alike", judge=lambda responses: [1.0] * len(responses))
    with pytest.raises(ValueError, match=r"The reward .blue. failed 21 times in a row"):
        made(tmp_path / "failed", judge=lambda responses: [float("nan")] * len(responses), seed=1)


def test_looking_again_is_as_good_as_the_worst_claim() -> None:
    class Looker:
        def alignment(self, images, prompts):
            return [0.1 if "dog" in one and "cat" not in one else 0.9 for one in prompts]

    reward = build_reward("look_again", lambda: Looker())  # pyright: ignore[reportArgumentType]
    image = np.zeros((4, 4, 3), np.uint8)
    said = ["A cat and a dog.", "A cat."]
    assert reward([Response("Describe", answer=one, image=image) for one in said]) == [0.1, 0.9]


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "prefer", str(tmp_path / "no.txt")])
    assert result.exit_code == 2 and "There are no prompts at" in result.output


class Recorder(Painter):
    """Draws nothing, and notes the seeds that it is given."""

    def generate_codes(self, prompt, num_images, seed, **_) -> torch.Tensor:
        self.seeds = list(seed)
        return torch.zeros(len(seed), 1, 4, dtype=torch.long)

    def decode_codes(self, codes: torch.Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (2, 2))] * len(codes)


@pytest.mark.parametrize(("num_samples", "num_near_misses"), [(8, 5), (48, 5), (100, 5), (200, 0)])
def test_no_two_drawings_have_the_same_noise(num_samples: int, num_near_misses: int) -> None:
    recorder, prompts = Recorder(), [PairPrompt(name, "two red circles left of a blue square") for name in "abc"]
    judge = GuardedReward("none", lambda some: [None] * len(some))
    PairMaker(recorder, judge, PairSettings(num_samples, num_near_misses))(prompts, 0)  # pyright: ignore[reportArgumentType]
    assert len(set(recorder.seeds)) == len(recorder.seeds) >= 3 * (num_samples + num_near_misses)
    with pytest.raises(ValueError, match="num_near_misses is at most 5"):
        PairSettings(num_near_misses=6)
