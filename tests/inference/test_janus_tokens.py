"""A Janus speaks and draws here, token for token, as in `transformers`: 12 checkpoints of random sizes that it wrote itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from janus_cases import draw, write_checkpoint
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, JanusForConditionalGeneration

import unimm
from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine

SEEDS = range(12)
QUESTIONS = ["What colour is the square?", "一个圆形？", "Is it red, or is it a large blue cross, or what else?", "a"]
PROMPTS = ["a small red circle", "三个绿色三角形", "a", "There are three green triangles; one is left of the cross."]
NUM_TOKENS = 12
TIE = 1e-4
"""The two likeliest tokens may change places where their logits lie nearer than this: sums round differently in batches."""


@pytest.fixture(scope="module", params=SEEDS)
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, list[Image.Image]]:
    """transformers' model and processor, the folder they wrote, and an image a question."""
    folder = tmp_path_factory.mktemp("janus") / "theirs"
    theirs, processor = write_checkpoint(folder, request.param)
    size = theirs.config.vision_config.image_size
    noise = np.random.default_rng(request.param).integers(0, 256, (len(QUESTIONS), size, size, 3), dtype=np.uint8)
    return theirs, processor, folder, [Image.fromarray(image) for image in noise]


@pytest.fixture(scope="module")
def engine(case: tuple) -> Engine:
    return unimm.load(case[2], device="cpu", dtype="float32")


def prompt_of(processor: Any, text: str, with_image: bool) -> str:
    parts = [{"type": "image"}] * with_image + [{"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


def their_text(theirs: Any, processor: Any, image: Image.Image, question: str) -> list[int]:
    inputs = processor(text=[prompt_of(processor, question, True)], images=[image], return_tensors="pt")
    out = theirs.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def our_texts(engine: Engine, images: list[Image.Image], questions: list[str]) -> list[list[int]]:
    looks = [engine.template.look(image) for image in images]
    asked = [
        engine.template.chat([Turn("user", (look, text))], NUM_TOKENS) for look, text in zip(looks, questions, strict=True)
    ]
    return [list(sequence.segments[-1].ids) for sequence in engine.fill(asked, Sampling(temperature=0.0))]


@torch.no_grad()
def their_logits(theirs: Any, processor: Any, prompt: str, codes: Tensor, scale: float) -> Tensor:
    """Guided logits (T, K) of every code of one drawing, computed in one pass without a cache."""
    given = processor(text=[prompt_of(processor, prompt, False)], generation_mode="image", return_tensors="pt")["input_ids"]
    null = given.clone()
    null[0, 1:-1] = processor.tokenizer.pad_token_id
    embedded = theirs.get_input_embeddings()(torch.cat([given, null]))
    drawn = theirs.prepare_embeddings_for_image_generation(codes[None, :-1].expand(2, -1))
    hidden = theirs.model.language_model(inputs_embeds=torch.cat([embedded, drawn], dim=1)).last_hidden_state
    conditional, unconditional = theirs.model.generation_head(hidden[:, given.shape[1] - 1 :])
    return unconditional + scale * (conditional - unconditional)


def assert_same_drawing(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    """Equal codes, up to the first tie."""
    different = (ours != theirs).nonzero()
    if len(different):
        best = logits[int(different[0])].topk(2).values
        assert best[0] - best[1] < TIE, f"code {int(different[0])} is {ours[different[0]]}, not {theirs[different[0]]}"


def test_prompts_are_the_same_ids(case: tuple, engine: Engine) -> None:
    _, processor, _, images = case
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for image, text in zip(images, QUESTIONS, strict=True):
        expected = processor(text=[prompt_of(processor, text, True)], images=[image], return_tensors="pt")
        sequence = engine.template.chat([Turn("user", (engine.template.look(image), f"{text} \n"))], NUM_TOKENS)
        ids: list[int] = []
        for segment in sequence.given.segments:
            ids += list(segment.ids) if segment.pixels is None else [placeholder] * segment.length
        assert ids == expected["input_ids"][0].tolist()
        torch.testing.assert_close(torch.from_numpy(engine.template.pixels(image).pixels)[None], expected["pixel_values"])
        expected = processor(text=[prompt_of(processor, text, False)], generation_mode="image", return_tensors="pt")
        drawing = engine.template.draw(text, num_codes=engine.image_tokenizer.num_codes)
        assert [i for segment in drawing.given.segments for i in segment.ids] == expected["input_ids"][0].tolist()


def test_greedy_answers_are_the_same_alone_and_together(case: tuple, engine: Engine) -> None:
    theirs, processor, _, images = case
    expected = [their_text(theirs, processor, *asked) for asked in zip(images, QUESTIONS, strict=True)]
    assert our_texts(engine, images, QUESTIONS) == expected
    assert our_texts(engine, images[:1], QUESTIONS[:1]) == expected[:1]
    told = engine.answer(images, QUESTIONS, max_new_tokens=NUM_TOKENS)
    assert told == [processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]


def test_greedy_drawings_are_the_same_alone_and_together(case: tuple, engine: Engine) -> None:
    theirs, processor, _, _ = case
    prompts = [prompt_of(processor, text, False) for text in PROMPTS]
    together = processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt")
    batch = draw(theirs, together)
    ours = engine.generate_codes(PROMPTS, temperature=0.0, guidance_scale=5.0)[:, 0]
    for index, prompt in enumerate(PROMPTS):
        inputs = processor(text=[prompts[index]], generation_mode="image", return_tensors="pt")
        (single,) = draw(theirs, inputs)
        alone = engine.generate_codes(prompt, temperature=0.0, guidance_scale=5.0)[0]
        logits = their_logits(theirs, processor, prompt, single, 5.0)
        for drawn in (ours[index], alone, batch[index]):
            assert_same_drawing(drawn, single, logits)


def test_greedy_drawings_without_guidance_are_the_likeliest_codes(case: tuple, engine: Engine) -> None:
    """transformers cannot draw with guidance 1 (test_janus_pitfalls): its logits say what it would draw."""
    theirs, processor, _, _ = case
    ours = engine.generate_codes(PROMPTS, temperature=0.0, guidance_scale=1.0)[:, 0]
    for codes, prompt in zip(ours, PROMPTS, strict=True):
        logits = their_logits(theirs, processor, prompt, codes, 1.0)
        assert_same_drawing(codes, logits.argmax(-1), logits)
        assert torch.equal(engine.generate_codes(prompt, temperature=0.0, guidance_scale=1.0)[0], codes)


def test_saved_and_opened_in_transformers_nothing_has_changed(case: tuple, engine: Engine, tmp_path: Path) -> None:
    theirs, processor, _, images = case
    assert engine.save(tmp_path / "ours") == []
    again, report = JanusForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    processor_again = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor_again) is type(processor)
    for image, text in zip(images[:2], QUESTIONS[:2], strict=True):
        assert their_text(again, processor_again, image, text) == their_text(theirs, processor, image, text)
        inputs = [
            p(text=[prompt_of(p, text, False)], generation_mode="image", return_tensors="pt")
            for p in (processor, processor_again)
        ]
        assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
        assert torch.equal(draw(theirs, inputs[0]), draw(again, inputs[1]))
    again.generation_config.validate(strict=True)
    assert unimm.load(tmp_path / "ours").prompt_format == engine.prompt_format


def test_half_precision_stays_near(case: tuple, engine: Engine) -> None:
    """bfloat16 has 8 bits of mantissa: logits of a few layers agree to a few hundredths of their spread."""
    half = unimm.load(case[2], device="cpu", dtype="bfloat16")
    sequences = [engine.template.draw(prompt, num_codes=engine.image_tokenizer.num_codes) for prompt in PROMPTS]
    spread, error = [], []
    for sequence in sequences:
        logits = [last_logits(one, sequence) for one in (engine, half)]
        spread.append(logits[0].std())
        error.append((logits[0] - logits[1]).pow(2).mean().sqrt())
    assert max(e / s for e, s in zip(error, spread, strict=True)) < 0.1
    (drawing,) = half.generate_images("a", seed=1)
    assert drawing.size == (engine.image_tokenizer.image_size,) * 2


@torch.no_grad()
def last_logits(engine: Engine, sequence: Any) -> Tensor:
    batch = collate([[sequence.given]])
    hidden = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
    return engine.model.codes.logits(hidden[:, -1]).float()
