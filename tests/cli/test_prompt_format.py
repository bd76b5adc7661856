"""`prompt_format` in a configuration: whole, or what it changes of a model's own; and what does not go with tiles."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from unimm.cli.builders import build_prompt_format, check_looks
from unimm.cli.compose import compose_config
from unimm.data.template import PromptFormat
from unimm.data.tiles import Tiles

OWN = PromptFormat("User", "Assistant", "Be brief.")


def test_what_is_not_named_stays_as_the_model_has_it() -> None:
    assert build_prompt_format(None, OWN) is OWN
    changed = build_prompt_format(OmegaConf.create({"tiles": {"max_tiles": 6, "thumbnail": False}}), OWN)
    assert changed == PromptFormat("User", "Assistant", "Be brief.", tiles=Tiles(6, thumbnail=False))
    assert build_prompt_format(OmegaConf.create({"tiles": None}), changed) == OWN
    whole = OmegaConf.create({"_target_": "unimm.data.PromptFormat", "tiles": {"max_tiles": 6}})
    assert build_prompt_format(whole, OWN) == PromptFormat(tiles=Tiles(6))


def test_the_command_line_sets_tiles() -> None:
    config = compose_config("train", ["image_tokenizer=x", "codes=x", "+prompt_format.tiles={max_tiles: 6, thumbnail: true}"])
    assert build_prompt_format(config.prompt_format, OWN).tiles == Tiles(6)


@pytest.mark.parametrize(("name", "num_frames"), [("unified", 16), ("llava_video", 64)])
def test_clips_are_watched_beside_what_the_model_has(name: str, num_frames: int) -> None:
    words = ["image_tokenizer=x", "codes=x", f"+experiment=clips/{name}", *(["data.paths=x"] if name == "llava_video" else [])]
    own = replace(OWN, box_form="short", box_bins=81)
    found = build_prompt_format(compose_config("train", words).prompt_format, own)
    assert found.video is not None and found.video.num_frames == num_frames and replace(found, video=None) == own


def test_a_typo_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"prompt_format has user, .*tiles.*, and no tile"):
        build_prompt_format(OmegaConf.create({"tile": {"max_tiles": 6}}), OWN)
    with pytest.raises(ValueError, match="set by max_tiles, min_tiles, thumbnail, not by max"):
        build_prompt_format(OmegaConf.create({"tiles": {"max": 6}}), OWN)


def test_features_of_one_square_are_refused() -> None:
    check_looks(OWN)
    with pytest.raises(ValueError, match=r"in tiles, .* leave features out"):
        check_looks(PromptFormat(tiles=Tiles()))
