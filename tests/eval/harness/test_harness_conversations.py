"""What harnesses ask, without a harness: settings, messages, many conversations at once, drawings as files, Janus' prompts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from unimm.eval.harness import janus_prompts
from unimm.eval.harness.conversations import Generation, answer_all, draw_all, edit_all, images_and_text, read_parts
from unimm.inference.engine import Engine


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Generation()),
        ({"max_new_tokens": 16, "until": ["\n\n"], "do_sample": False}, Generation(16, until=("\n\n",))),
        ({"max_gen_toks": 9, "until": "Q:", "temperature": 0}, Generation(9, until=("Q:",))),
        ({"temperature": 0.2, "top_p": 0.9, "do_sample": False}, Generation()),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 5, "until": None}, Generation(temperature=0.5, top_p=0.9, top_k=5)),
        ({"do_sample": True}, Generation(temperature=1.0)),
    ],
)
def test_settings_are_read_as_transformers_means_them(asked: dict, expected: Generation) -> None:
    assert Generation.read(asked) == expected
    assert Generation.read(asked, 7).max_new_tokens == 7


def test_what_the_engine_does_not_do_is_refused() -> None:
    with pytest.raises(ValueError, match="3 beams, and unimm writes one text: set num_beams to 1"):
        Generation.read({"num_beams": 3})
    with pytest.raises(ValueError, match="A task shows video, and the model reads text and images"):
        read_parts([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


def test_messages_with_several_images_are_the_engine_s(tiny_engine: Engine, picture: Image.Image) -> None:
    """Each conversation is answered as it is alone, whatever stands beside it and however it is set."""
    asked = [
        [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": [*[{"type": "image", "url": picture}] * 2, {"type": "text", "text": "Same?"}]}],
        [{"role": "user", "content": "How many?"}],
        [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "Say."}]}],
    ]
    conversations = [read_parts(messages, "") for messages in asked]
    settings = [Generation(4), Generation(6), Generation(4), Generation(4)]
    answers = answer_all(tiny_engine, conversations, settings, batch_size=2)
    alone = [
        tiny_engine.complete(one, setting.max_new_tokens).text for one, setting in zip(conversations, settings, strict=True)
    ]
    assert answers == alone
    assert conversations[0][0] == {"role": "system", "content": ""} and read_parts(asked[2])[0]["role"] == "user"
    images, text = images_and_text(conversations[1])
    assert images == [picture, picture] and text == "Same?"


def test_drawings_are_files_that_an_answer_names(tiny_engine: Engine, tmp_path: Path) -> None:
    """The same drawing in any batch and any process: noise goes by the item's name."""
    prompts, names = ["a red circle", "a blue square"], ["WISE_7_0", "we/ird 8"]
    answers = draw_all(tiny_engine, prompts, names, tmp_path / "all", seed=3)
    told = [json.loads(answer) for answer in answers]
    assert [list(one) for one in told] == [["text", "images"]] * 2 and told[0]["text"] == ""
    assert [Path(path).name for one in told for path in one["images"]] == ["WISE_7_0.png", "we_ird_8.png"]
    (alone,) = draw_all(tiny_engine, prompts[1:], names[1:], tmp_path / "alone", seed=3)
    pixels = [Image.open(path).tobytes() for path in (told[1]["images"][0], json.loads(alone)["images"][0])]
    assert pixels[0] == pixels[1]


def test_janus_is_asked_as_vlmevalkit_asks_it() -> None:
    """Word for word, as vlmeval/vlm/janus.py builds it, less the line end that our template writes behind the image."""
    pope = {"question": "Is there a dog in the image?", "answer": "no"}
    single = "\nAnswer the question using a single word or phrase."
    assert janus_prompts.rewrite("pope", pope, "as the task") == "Is there a dog in the image?" + single
    mme = {"question": "Is it red? Please answer yes or no.", "answer": "Yes"}
    assert janus_prompts.rewrite("mme", mme, "") == "Is it red?" + single
    mmbench = {"question": "Which?", "hint": "Look.", "A": "one", "B": "two", "C": "nan", "D": None, "answer": "A"}
    letter = "\n\nAnswer with the option's letter from the given choices directly."
    assert janus_prompts.rewrite("mmbench_en_dev", mmbench, "") == "Hint: Look.\nWhich?\nA. one\nB. two" + letter
    seed = {"question": "Which?", "choice_a": "one", "choice_b": "two", "hint": "nan"}
    assert janus_prompts.rewrite("seedbench", seed, "") == "Which?\nA. one\nB. two" + letter
    assert janus_prompts.rewrite("mmvet", {"question": "Why?"}, "long") == "Why?"
    assert "step by step" in janus_prompts.system_prompt("mmvet") and janus_prompts.system_prompt("pope") == ""


def test_other_tasks_keep_their_own_words() -> None:
    """Nothing is read from an answer: a question of VQAv2 that is answered by yes is asked like any other."""
    vqa = {"question": "Is it red?", "answer": "yes"}
    for name in ("vqav2_val", "mmerealworld", "mme_cot_reason", "popeye"):
        assert janus_prompts.rewrite(name, vqa, "as the task asks") == "as the task asks"


def test_edits_keep_the_size_of_their_image(tiny_engine: Engine, picture: Image.Image, tmp_path: Path) -> None:
    taught = replace(tiny_engine.bundle, prompt_format=replace(tiny_engine.prompt_format, edits="codes_last"))
    tall = picture.rotate(90, expand=True)
    answers = edit_all(Engine(taught), [picture, tall], ["make it blue"] * 2, ["a_1", "b 2"], tmp_path, seed=3)
    paths = [Path(json.loads(answer)["images"][0]) for answer in answers]
    assert [path.name for path in paths] == ["a_1.png", "b_2.png"] and [Image.open(path).size for path in paths] == [
        (24, 16),
        (16, 24),
    ]
    (alone,) = edit_all(Engine(taught), [tall], ["make it blue"], ["b 2"], tmp_path / "alone", seed=3)
    assert Path(json.loads(alone)["images"][0]).read_bytes() == paths[1].read_bytes()
    with pytest.raises(ValueError, match="was not taught to edit"):
        edit_all(tiny_engine, [picture], ["make it blue"], ["a"], tmp_path)
