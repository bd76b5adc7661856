"""The engine on a GPU gives what it gives on a CPU: captured steps, steps that are read late and a second stream change no id.

What a CPU can do it does here too, without all of these; `pytest -m gpu` has the rest. All models are tiny.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer
from PIL import Image
from test_admission import finish
from test_decoder import PROMPTS, drawing, question
from test_llama_decode import relative_error

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.inference.decode.kv_cache import BUCKET, RowCache, cache_bytes
from unimm.inference.decode.paged_cache import num_blocks_for
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.step import Graphs
from unimm.inference.decode.workload import Limits
from unimm.inference.drawing import DrawingProgress
from unimm.inference.engine import Engine
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.models.unified import UnifiedModel

ON_EVERY_DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

TRUNKS = {
    "llama": {},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3, heads share keys": {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2},
    "qwen3, all share one": {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 1},
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 2},
    "gpt_neox": {"model_type": "gpt_neox"},
}
CAPTURED = ("llama", "qwen2", "qwen3")
"""Trunks whose steps are captured on a GPU."""

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.05}
"""Whole groups and tiles of all few-bit products."""


@pytest.fixture(autouse=True)
def whole_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 is float32, also of convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_engine(device: str, trunk: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32, **words: Any) -> Engine:
    """The tiny engine on a device, of its own, so that it may be changed; its weights are the same everywhere."""
    tokenizer = tiny_text_tokenizer()
    model = tiny_model(len(tokenizer))
    if trunk:
        torch.manual_seed(0)
        model = UnifiedModel(replace(model.config, trunk=model.config.trunk | trunk)).eval()
    bundle = ModelBundle(model.to(device, dtype), {DEFAULT: tiny_image_tokenizer().to(device)}, tokenizer)
    return Engine(bundle, **words)


def mix(engine: Engine) -> list[Request]:
    """Drawings and texts, greedy and drawn, guided always, never, late and for a while; all of different lengths."""
    return [
        Request(drawing(engine, PROMPTS[0]), Sampling(1.0, seed=3), 5.0),
        Request(question(engine, "What colour is the square?", 20), Sampling()),
        Request(drawing(engine, PROMPTS[1], 9), Sampling(0.7, seed=3, index=1), 1.0),
        Request(question(engine, "How many?", 5, seed=1), Sampling(1.3, seed=1)),
        Request(drawing(engine, PROMPTS[2], 15), Sampling(), 2.0, guidance_interval=(0.4, 1.0)),
        Request(drawing(engine, PROMPTS[3], 14), Sampling(1.0, seed=9), 3.0, guidance_interval=(0.3, 0.7)),
        Request(drawing(engine, PROMPTS[3], 1), Sampling(1.0, seed=9), 0.0),
    ]


def settings(engine: Engine) -> list[Request]:
    """Every setting of sampling, and log-probabilities."""
    penalised = Sampling(1.0, seed=4, top_k=20, top_p=0.9, repetition_penalty=1.5)
    return [
        Request(question(engine, "How many?", 16), penalised, logprobs=True),
        Request(question(engine, "How many?", 12), replace(penalised, temperature=0.0), logprobs=True),
        Request(question(engine, "Which one?", 9), Sampling(1.2, seed=5, min_p=0.05), logprobs=True, top_logprobs=4),
        Request(drawing(engine, PROMPTS[0], 14), Sampling(1.0, top_k=5, top_p=0.8, seed=6), 4.0, logprobs=True),
        Request(drawing(engine, PROMPTS[1], 11), Sampling(0.9, min_p=0.1, seed=7), logprobs=True),
    ]


def fill_with_logprobs(engine: Engine, requests: list[Request]) -> tuple[list[list[int]], list[list[float]]]:
    jobs: list[Job] = []
    list(engine.decoder.steps(requests, jobs=jobs))
    return [job.filled for job in jobs], [job.logprobs for job in jobs]


def is_captured(engine: Engine) -> bool:
    """Whether steps were recorded."""
    step = engine.decoder._running._step
    return step is not None and step._graphs is not None and len(step._graphs._graphs) > 0


@ON_EVERY_DEVICE
def test_a_mix_on_a_gpu_is_what_it_is_on_a_cpu(device: str, tiny_engine: Engine) -> None:
    """Together, one by one, and once more together: captured steps serve again when others were there meanwhile."""
    expected = tiny_engine.decoder.fill(mix(tiny_engine))
    decoder = (engine := make_engine(device)).decoder
    requests = mix(engine)
    assert decoder.fill(requests) == expected
    assert [decoder.fill([request])[0] for request in requests] == expected
    assert decoder.fill(requests[:3]) == expected[:3]
    assert decoder.fill(requests[::-1]) == expected[::-1]
    assert is_captured(engine) == (device == "cuda")


@ON_EVERY_DEVICE
def test_a_cache_that_grows_moves_nobody(device: str, tiny_engine: Engine) -> None:
    """More rows, then longer ones, then few short ones again, while somebody stays."""
    engine = make_engine(device)
    long = Request(drawing(engine, PROMPTS[0], 150), Sampling(1.0, seed=8), 3.0)
    expected = tiny_engine.decoder.fill([long, *mix(tiny_engine)])
    stays = engine.decoder.submit(long)
    engine.decoder.step()
    for requests in (mix(engine)[:1], mix(engine), mix(engine)[:1]):
        assert engine.decoder.fill(requests) == expected[1:][: len(requests)]
    assert finish(engine.decoder, [stays])[stays] == expected[0]
    engine.decoder.release()
    assert engine.decoder.fill(mix(engine)) == expected[1:]


@ON_EVERY_DEVICE
@pytest.mark.parametrize("limits", [Limits(), Limits(max_rows=4), Limits(prefill_positions=5)], ids=["all", "few", "pieces"])
def test_who_comes_and_goes_changes_nobodys_ids(device: str, limits: Limits, tiny_engine: Engine) -> None:
    expected = tiny_engine.decoder.fill(mix(tiny_engine))
    decoder = (engine := make_engine(device, limits=limits)).decoder
    requests = mix(engine)
    asked: dict[int, int] = {}
    for turn in range(3 * len(requests)):
        asked[decoder.submit(requests[turn % len(requests)])] = turn % len(requests)
        for _ in range(turn % 4):
            decoder.step()
        if turn % 3 == 2:
            decoder.abort(dropped := list(asked)[turn // 2])
            asked.pop(dropped)
    filled = finish(decoder, list(asked))
    assert filled == {ticket: expected[number] for ticket, number in asked.items()}
    assert decoder.stats().num_rows == 0


@ON_EVERY_DEVICE
def test_settings_and_log_probabilities_are_those_of_a_cpu(device: str, tiny_engine: Engine) -> None:
    expected_ids, expected = fill_with_logprobs(tiny_engine, settings(tiny_engine))
    engine = make_engine(device)
    for requests in (settings(engine), [*settings(engine), *mix(engine)]):
        ids, logprobs = fill_with_logprobs(engine, requests)
        assert ids[: len(expected_ids)] == expected_ids
        for got, one in zip(logprobs[: len(expected)], expected, strict=True):
            torch.testing.assert_close(torch.tensor(got), torch.tensor(one), atol=1e-4, rtol=1e-4)


@ON_EVERY_DEVICE
@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS.keys())
def test_every_trunk_decodes_the_same(device: str, trunk: dict[str, Any]) -> None:
    reference, engine = make_engine("cpu", trunk), make_engine(device, trunk)
    for _ in range(2):
        assert engine.decoder.fill(mix(engine)) == reference.decoder.fill(mix(reference))
    captures = device == "cuda" and engine.model.trunk.config.model_type in CAPTURED
    assert is_captured(engine) == captures


@ON_EVERY_DEVICE
def test_graphs_beyond_the_most_are_recorded_again(device: str, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimm.inference.decode.step.MOST", 2)
    engine = make_engine(device)
    for _ in range(2):
        assert engine.decoder.fill(mix(engine)) == tiny_engine.decoder.fill(mix(tiny_engine))


@ON_EVERY_DEVICE
def test_deterministic_ids_are_the_same_in_any_company_in_bfloat16(device: str) -> None:
    limits = Limits(max_rows=16, max_positions=128)
    decoder = (engine := make_engine(device, dtype=torch.bfloat16, limits=limits, deterministic=True)).decoder
    requests = mix(engine)
    together = decoder.fill(requests)
    assert [decoder.fill([request])[0] for request in requests] == together
    assert decoder.fill(requests[::-1]) == together[::-1]


@ON_EVERY_DEVICE
def test_new_weights_are_drawn_with(device: str) -> None:
    """Given by name, or changed in place as a trainer does it; nothing that was captured keeps old ones."""
    engine, reference = make_engine(device), make_engine("cpu")
    old = engine.decoder.fill(mix(engine))

    def give(engine: Engine) -> None:
        named = engine.model.named_parameters()
        engine.update_weights([(name, weight.detach() * 1.3) for name, weight in named if "proj" in name or "head" in name])

    def learn(engine: Engine) -> None:
        with torch.no_grad():
            for layer in engine.model.trunk.layers:
                layer.self_attn.v_proj.weight.mul_(-1.0)
                layer.mlp.up_proj.weight.mul_(0.5)

    for change in (give, learn):
        for one in (engine, reference):
            change(one)
        new = engine.decoder.fill(mix(engine))
        assert new == reference.decoder.fill(mix(reference)) != old
        old = new


@ON_EVERY_DEVICE
def test_two_engines_of_one_model_draw_the_same_in_turns(device: str, tiny_engine: Engine) -> None:
    """On a GPU each joins the model's weights anew."""
    one = make_engine(device)
    other = Engine(one.bundle)
    expected = tiny_engine.decoder.fill(mix(tiny_engine))
    for engine in (one, other, one):
        assert engine.decoder.fill(mix(engine)) == expected


@ON_EVERY_DEVICE
def test_pixels_are_those_of_a_cpu(device: str, tiny_engine: Engine) -> None:
    """More images than are decoded at once."""
    engine = make_engine(device)
    codes = torch.randint(32, (70, 4), generator=torch.Generator().manual_seed(0))
    for got, expected in zip(engine.decode_codes(codes), tiny_engine.decode_codes(codes), strict=True):
        assert np.abs(np.asarray(got, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
    assert engine.decode_codes(codes[:0]) == []


@ON_EVERY_DEVICE
def test_codes_of_images_are_those_of_a_cpu(device: str, tiny_engine: Engine, picture: Image.Image) -> None:
    images = [picture, picture.rotate(90), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    engine = make_engine(device)
    assert torch.equal(engine.encode_image(images), tiny_engine.encode_image(images))
    assert torch.equal(engine.encode_image(picture), tiny_engine.encode_image(picture))


@ON_EVERY_DEVICE
def test_previews_change_no_code(device: str, tiny_engine: Engine) -> None:
    """Also while steps are being captured, which the first drawing is."""
    engine = make_engine(device)
    expected = tiny_engine.generate_codes(PROMPTS[:3], num_images=2, seed=5).flatten(0, 1)
    for preview_every in (1, 2, 1):
        states = list(engine.stream_images(list(PROMPTS[:3]), num_images=2, seed=5, preview_every=preview_every))
        assert states[-1].is_final and torch.equal(states[-1].codes, expected)
        images = engine.decode_codes(expected)
        assert [image.tobytes() for image in states[-1].images or []] == [image.tobytes() for image in images]


@ON_EVERY_DEVICE
def test_a_drawing_that_its_callback_stops_leaves_an_engine_that_works(device: str, tiny_engine: Engine) -> None:
    engine = make_engine(device)

    def stop(progress: DrawingProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate_images(PROMPTS[0], callback=stop)
    assert engine.decoder.stats().num_rows == 0
    assert torch.equal(engine.generate_codes(PROMPTS[0], seed=5), tiny_engine.generate_codes(PROMPTS[0], seed=5))


def on_cuda(weights: str, error: float) -> Any:
    return pytest.param("cuda", weights, error, marks=pytest.mark.gpu, id=f"cuda-{weights}")


@pytest.fixture
def torchao_where_needed(device: str) -> None:
    if device == "cuda":
        pytest.importorskip("torchao")


FEW_BITS: Callable = pytest.mark.parametrize(
    ("device", "weights", "error"),
    [
        pytest.param("cpu", "int8", 0.02, id="cpu-int8"),
        pytest.param("cpu", "int4", 0.2, id="cpu-int4"),
        on_cuda("int8", 0.02),
        on_cuda("fp8", 0.06),
        on_cuda("int4", 0.2),
    ],
)


@FEW_BITS
@pytest.mark.usefixtures("torchao_where_needed")
@torch.no_grad()
def test_a_step_of_few_bits_is_near_on_a_gpu(device: str, weights: str, error: float) -> None:
    model = make_engine(device, WIDE, torch.bfloat16).model
    torch.manual_seed(0)
    x = torch.randn(5, model.width, dtype=torch.bfloat16).to(device)
    positions = torch.zeros(5, dtype=torch.long, device=device)
    plain, few = (DecodeModel(model, kind) for kind in (None, weights))
    expected, near = (fast.advance(x, positions, 1, RowCache(2)) for fast in (plain, few))
    assert 0 < relative_error(near, expected) < error
    for kind in model.vocabulary_ports:
        expected, near = (fast.sample(kind, x, lambda logits: logits) for fast in (plain, few))
        assert relative_error(near, expected) < error


@FEW_BITS
@pytest.mark.usefixtures("torchao_where_needed")
def test_an_engine_of_few_bits_draws_to_the_end(device: str, weights: str, error: float) -> None:
    engine = make_engine(device, WIDE, torch.bfloat16, weights=weights)
    filled = engine.decoder.fill(mix(engine))
    assert [len(ids) for ids in filled] == [request.blank.limit for request in mix(engine)]
    assert engine.decoder.fill(mix(engine)) == filled
    assert is_captured(engine) == (device == "cuda")
    assert [image.size for image in engine.generate_images(PROMPTS[0], num_images=2, seed=1)] == [(16, 16)] * 2


@pytest.mark.gpu
def test_a_graph_is_what_was_recorded_once() -> None:
    """What it reads may change in place, and what recording has changed counts once."""
    graphs, calls = Graphs(torch.device("cuda")), []
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")

    def work() -> torch.Tensor:
        calls.append(1)
        total.add_(x)
        return total * 2

    assert graphs.run("shape", work, [total]).tolist() == [2.0] * 3
    x.fill_(5.0)
    assert graphs.run("shape", work, [total]).tolist() == [12.0] * 3
    assert len(calls) == 2


@pytest.mark.gpu
def test_with_blocks_a_row_costs_what_it_holds() -> None:
    from test_paged_cache import fill, long_and_short  # which takes its engines from here

    reference = make_engine("cpu")
    requests = [*long_and_short(reference), *mix(reference)]
    engine = make_engine("cuda", kernels="triton", limits=Limits(max_rows=16, window=1))
    filled, most = fill(engine, requests)
    assert filled == reference.decoder.fill(requests) and engine.decoder.running.kernels.reads_blocks
    slots = [request.sequence.length for request in requests for _ in range(request.num_rows)]
    # Twice: blocks are doubled where they become more.
    assert most <= cache_bytes(engine.model, 2 * num_blocks_for(slots), BUCKET)
