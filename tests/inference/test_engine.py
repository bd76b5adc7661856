"""The engine: what users give comes back in the same shape, the same whatever it is batched with."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer
from PIL import Image

import unimm
from unimm.batch import collate
from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.image import ImageError
from unimm.data.records import SHOWS
from unimm.data.template import PromptFormat, Turn
from unimm.data.views import DESCRIBE
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.inference.kernels.quantized_linear import share
from unimm.sequence import Kind, Segment, Sequence

PROMPTS = ["a red circle", "two large blue squares left of a cross", "a"]


@pytest.fixture
def images(picture: Image.Image) -> list[Image.Image]:
    return [picture, picture.rotate(90, expand=True), picture.resize((7, 90))]


# -- text out ------------------------------------------------------------------------------------------------------------


def test_one_in_one_out_and_a_list_for_a_list(tiny_engine: Engine, images: list[Image.Image]) -> None:
    together = tiny_engine.caption(images, max_new_tokens=8)
    assert together == [tiny_engine.caption(image, max_new_tokens=8) for image in images]
    questions = ["How many circles?", "What colour is it?", "Is there a cross?"]
    answers = tiny_engine.answer(images, questions, max_new_tokens=8)
    pairs = zip(images, questions, strict=True)
    assert answers == [tiny_engine.answer(image, question, max_new_tokens=8) for image, question in pairs]
    assert tiny_engine.answer(images[0], questions[:2], max_new_tokens=8) == [
        tiny_engine.answer(images[0], question, max_new_tokens=8) for question in questions[:2]
    ]
    assert tiny_engine.caption([], max_new_tokens=8) == []


def test_an_image_is_the_same_however_it_is_held(tiny_engine: Engine, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    held = [
        picture,
        path,
        str(path),
        path.read_bytes(),
        np.asarray(picture),
        path.open("rb"),
        torch.from_numpy(np.array(picture)),
    ]
    assert len(set(tiny_engine.caption(held, max_new_tokens=8))) == 1
    assert all(torch.equal(tiny_engine.encode_image(one), tiny_engine.encode_image(picture)) for one in held)


def test_a_file_that_can_be_read_once_goes_with_many_questions(tiny_engine: Engine, picture: Image.Image) -> None:
    file = io.BytesIO()
    picture.save(file, "PNG")

    class Stream:
        def read(self, size: int = -1) -> bytes:
            data = file.getvalue()
            file.seek(0)
            file.truncate()
            return data

    questions = ["How many?", "Which?"]
    assert tiny_engine.answer(Stream(), questions, max_new_tokens=8) == tiny_engine.answer(picture, questions, max_new_tokens=8)


def test_chat_streams_what_it_says_at_once(tiny_engine: Engine, images: list[Image.Image]) -> None:
    content = [{"type": "image", "image": images[0]}, {"type": "image", "image": images[1]}, {"type": "text", "text": "Both?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
    ]
    whole = tiny_engine.chat(messages, max_new_tokens=20)
    assert "".join(tiny_engine.chat(messages, stream=True, max_new_tokens=20)).strip() == whole
    with pytest.raises(ValueError, match="positions"):
        tiny_engine.chat(messages, stream=True, max_new_tokens=2000)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "king", "content": "Hello"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "sound"}]}],
        [{"role": "user", "content": ""}],
    ],
)
def test_messages_that_mean_nothing(messages: list[dict], tiny_engine: Engine) -> None:
    with pytest.raises(ValueError):
        tiny_engine.chat(messages)


def test_lists_that_do_not_pair(tiny_engine: Engine, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="3 images do not pair with 2 questions"):
        tiny_engine.answer(images, ["How many?", "Which?"])


# -- images out ----------------------------------------------------------------------------------------------------------


def test_image_i_depends_on_seed_and_i_alone(tiny_engine: Engine) -> None:
    codes = tiny_engine.generate_codes(PROMPTS, num_images=3, seed=7)
    assert codes.shape == (3, 3, 4)
    for number, prompt in enumerate(PROMPTS):
        assert torch.equal(tiny_engine.generate_codes(prompt, num_images=3, seed=7), codes[number])
        assert torch.equal(tiny_engine.generate_codes(prompt, num_images=1, seed=7), codes[number, :1])
    assert not torch.equal(tiny_engine.generate_codes(PROMPTS, num_images=3, seed=8), codes)
    greedy = tiny_engine.generate_codes(PROMPTS[0], num_images=2, temperature=0.0)
    assert torch.equal(greedy[0], greedy[1])


def test_every_prompt_can_have_a_seed_of_its_own(tiny_engine: Engine) -> None:
    codes = tiny_engine.generate_codes(PROMPTS, num_images=2, seed=[3, 4, 3])
    for own, prompt, seed in zip(codes, PROMPTS, (3, 4, 3), strict=True):
        assert torch.equal(own, tiny_engine.generate_codes(prompt, num_images=2, seed=seed))
    with pytest.raises(ValueError, match="one seed, or one for each of the 3 prompts, not 2"):
        tiny_engine.generate_codes(PROMPTS, seed=[1, 2])


def test_alignment_is_the_probability_of_yes_against_no(tiny_engine: Engine, images: list[Image.Image]) -> None:
    """Of the two words, where they first differ: this vocabulary writes both with a space before them."""
    words = [tiny_engine.tokenizer.encode(word) for word in (" yes", " no")]
    assert words[0][0] == words[1][0] and words[0][1] != words[1][1]
    found = tiny_engine.alignment(images, PROMPTS)
    for image, prompt, probability in zip(images, PROMPTS, found, strict=True):
        turn = Turn("user", (tiny_engine.template.look(image), SHOWS.format(prompt)))
        asked = tiny_engine.template.chat([turn], 1).given
        batch = collate([[Sequence((*asked.segments, Segment.text(words[0][:1])))]])
        hidden = tiny_engine.model.hidden(tiny_engine.model.embed(batch), batch.attention_mask(), batch.positions)
        log_probabilities = tiny_engine.model.text.logits(hidden[0, -1]).detach().log_softmax(-1)
        yes, no = (log_probabilities[ids[1]].exp() for ids in words)
        assert probability == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    assert tiny_engine.alignment(images[0], PROMPTS[0]) == pytest.approx(found[0], abs=1e-5)
    assert tiny_engine.alignment(images, PROMPTS[0])[1] != tiny_engine.alignment(images, PROMPTS[2])[1]
    assert tiny_engine.alignment([], []) == []
    with pytest.raises(ValueError, match="prompt is empty"):
        tiny_engine.alignment(images[0], " ")


def test_the_best_of_several_drawings_is_the_one_that_aligns_best(tiny_engine: Engine) -> None:
    every = tiny_engine.generate_images(PROMPTS, num_images=6, seed=3)
    best = tiny_engine.generate_images(PROMPTS, num_images=2, seed=3, best_of=3)
    for prompt, all_six, both in zip(PROMPTS, every, best, strict=True):
        scores = tiny_engine.alignment(all_six, prompt)
        for image, three in zip(both, (range(3), range(3, 6)), strict=True):
            assert image.tobytes() == all_six[max(three, key=lambda index: scores[index])].tobytes()
    (alone,) = tiny_engine.generate_images(PROMPTS[1], seed=3, best_of=3)
    assert alone.tobytes() == best[1][0].tobytes()
    assert tiny_engine.generate_images([], best_of=2) == []
    for wrong in (0, None, 2.5):
        with pytest.raises(ValueError, match=f"best_of is a whole number of at least 1, not {wrong}"):
            tiny_engine.generate_images("a", best_of=wrong)
    long = "xy " * (tiny_engine.model.config.max_positions // 2)
    for ask in (lambda: tiny_engine.alignment(alone, long), lambda: tiny_engine.generate_images(long, best_of=2)):
        with pytest.raises(
            ValueError, match=r"To ask whether an image shows this prompt takes \d+ positions, and the model was made"
        ):
            ask()


def test_taking_turns_changes_nothing(tiny_engine: Engine) -> None:
    narrow = Engine(tiny_engine.bundle, limits=unimm.Limits(max_rows=3))
    words = {"num_images": 2, "seed": 1, "guidance_scale": 3.0}
    assert torch.equal(narrow.generate_codes(PROMPTS, **words), tiny_engine.generate_codes(PROMPTS, **words))


def test_images_are_the_decoded_codes(tiny_engine: Engine) -> None:
    codes = tiny_engine.generate_codes(PROMPTS, num_images=2)
    images = tiny_engine.generate_images(PROMPTS, num_images=2)
    assert [len(row) for row in images] == [2, 2, 2]
    for row, row_codes in zip(images, codes, strict=True):
        for image, again in zip(row, tiny_engine.decode_codes(row_codes), strict=True):
            assert image.size == (16, 16)
            assert image.tobytes() == again.tobytes()
    assert tiny_engine.generate_images([]) == []


def test_the_callback_hears_every_code_and_can_stop(tiny_engine: Engine) -> None:
    heard = []
    codes = tiny_engine.generate_codes(PROMPTS[0], num_images=2, callback=heard.append)
    assert [(state.step, state.num_steps) for state in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(heard[-1].codes, codes)

    def stop(_state) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        tiny_engine.generate_codes(PROMPTS[0], callback=stop)


def test_codes_that_are_none_are_refused(tiny_engine: Engine) -> None:
    for codes in (torch.tensor([0, 1, 2, 32]), torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, 2])):
        with pytest.raises(ValueError):
            tiny_engine.decode_codes(codes)
    with pytest.raises(ImageError):
        tiny_engine.encode_image(b"no image")
    with pytest.raises(ValueError, match="num_images"):
        tiny_engine.generate_codes("a", num_images=0)


# -- the general call, and the folder ------------------------------------------------------------------------------------


def test_fill_closes_texts_and_drawings_in_one_batch(tiny_engine: Engine) -> None:
    drawing = tiny_engine.template.draw(PROMPTS[0], num_codes=4)
    chat = tiny_engine.template.chat([Turn("user", ("Hello",))], 6)
    filled = tiny_engine.fill([drawing, chat], Sampling(1.0, seed=2), guidance_scale=5.0)
    assert [sequence.is_open for sequence in filled] == [False, False]
    assert [sequence.segments[-1].kind for sequence in filled] == [Kind.CODES, Kind.TEXT]
    assert filled[0].segments[-1].ids == tuple(tiny_engine.generate_codes(PROMPTS[0], seed=2)[0].tolist())


def test_saved_and_loaded_it_says_and_draws_the_same(tiny_engine: Engine, tiny_folder: Path, picture: Image.Image) -> None:
    loaded = unimm.load(tiny_folder, device="cpu")
    assert loaded.prompt_format == tiny_engine.prompt_format
    assert torch.equal(loaded.generate_codes(PROMPTS, 2, 3), tiny_engine.generate_codes(PROMPTS, 2, 3))
    assert loaded.caption(picture, max_new_tokens=8) == tiny_engine.caption(picture, max_new_tokens=8)


def test_a_folder_without_a_prompt_format_is_read_from_its_chat_template(
    tiny_engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    text = (tiny_folder / "config.json").read_text()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text(text.replace('"prompt_format"', '"something_else"'))
    assert unimm.load(copy, "cpu").prompt_format == tiny_engine.prompt_format
    (copy / "config.json").write_text(text.replace('"system_prompt"', '"anthem"'))
    with pytest.raises(ValueError, match="anthem"):
        unimm.load(copy, "cpu")


def test_saving_replaces_a_model_and_nothing_else(tiny_engine: Engine, tmp_path: Path) -> None:
    tiny_engine.save(tmp_path / "model")
    (tmp_path / "model" / "stale.txt").write_text("of before")
    tiny_engine.save(tmp_path / "model")
    assert not (tmp_path / "model" / "stale.txt").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("love")
    with pytest.raises(ValueError, match="letters"):
        tiny_engine.save(tmp_path / "letters")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "love"


def test_half_precision_loads_and_runs(tiny_folder: Path, picture: Image.Image) -> None:
    engine = unimm.load(tiny_folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
    full = unimm.load(tiny_folder, device="cpu", dtype="float32")
    assert engine.alignment(picture, "a red circle") == pytest.approx(full.alignment(picture, "a red circle"), rel=0.2)
    codes = engine.generate_codes("a", num_images=2, seed=1)
    assert codes.shape == (2, 4) and 0 <= int(codes.min()) <= int(codes.max()) < 32
    drawn = [np.asarray(image, dtype=int) for image in engine.decode_codes(codes)]
    exact = [np.asarray(image, dtype=int) for image in full.decode_codes(codes)]
    assert all(np.abs(one - other).mean() < 3 for one, other in zip(drawn, exact, strict=True))
    assert engine.caption(picture, max_new_tokens=4) == engine.answer(picture, DESCRIBE["en"][0], max_new_tokens=4)


@pytest.mark.parametrize("sees", ["codes", "both"])
def test_an_engine_that_sees_codes(sees: str, tiny_engine: Engine, images: list[Image.Image], tmp_path: Path) -> None:
    engine = Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(sees=sees)))
    answers = engine.answer(images, "What?", max_new_tokens=8)
    assert answers == [engine.answer(image, "What?", max_new_tokens=8) for image in images]
    assert answers != tiny_engine.answer(images, "What?", max_new_tokens=8)
    assert engine.save(tmp_path / "model") == [f"it sees {sees}, a Janus sees pixels"]
    assert unimm.load(tmp_path / "model", device="cpu").answer(images, "What?", max_new_tokens=8) == answers


def test_what_a_gpu_makes_of_weights_can_be_saved(tmp_path: Path) -> None:
    """Decoding on any device but a CPU makes q/k/v and gate/up views of joint tensors; a model of such views is written."""
    tokenizer = tiny_text_tokenizer()
    model = tiny_model(len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in model.trunk.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for group in ([attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]):
            share(group, torch.cat([linear.weight.detach() for linear in group]))
    saved = ModelBundle(model, {DEFAULT: tiny_image_tokenizer()}, tokenizer).save(tmp_path / "model")
    after = unimm.load(saved or tmp_path / "model", device="cpu", dtype="float32").model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
