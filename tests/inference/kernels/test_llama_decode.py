"""The engine's own decode step gives what `transformers`' trunk gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_text_tokenizer
from janus_cases import write_checkpoint

import unimm
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.kernels.decode_kernels import DecodeKernels, attend, attend_fused
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.inference.kernels.quantized_linear import (
    Int4Linear,
    Int8Linear,
    IntegerLinear,
    PackedLinear,
    can_pack,
    has_integer_products,
    join,
    make_cpu_linear,
    quantize_by_torchao,
    share,
)
from unimm.models.unified import UnifiedModel


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 7])
@torch.inference_mode()
def test_it_is_the_trunk_of_transformers(seed: int, tmp_path: Path) -> None:
    """Llama and Qwen3, grouped heads, rows at different places."""
    write_checkpoint(tmp_path / "m", seed)
    model = unimm.load(tmp_path / "m", device="cpu", dtype="float32").model
    fast, torch_cache, fast_cache = DecodeModel(model), RowCache(len(model.trunk.layers)), RowCache(len(model.trunk.layers))
    assert fast.layers is not None
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 2, 9])
    given = torch.randn(3, 9, model.width, generator=generator)
    positions = torch.arange(9).expand(3, -1)
    for cache in (torch_cache, fast_cache):
        cache.reserve(3, 20)
        cache.prepare(slice(0, 3), positions, 9)
        model.hidden(given, torch.ones(9, 9, dtype=torch.bool).tril()[None, None], positions, cache)
    for step in range(4):
        new, places = torch.randn(3, model.width, generator=generator), lengths + step
        used = int(places.max()) + 1
        torch_cache.prepare(slice(0, 3), places[:, None], used)
        seen = (torch.arange(used) <= places[:, None])[:, None, None]
        expected = model.hidden(new[:, None], seen, places[:, None], torch_cache)[:, 0]
        torch.testing.assert_close(fast.advance(new, places, used, fast_cache), expected, atol=1e-5, rtol=1e-5)
        for kind, port in model.vocabulary_ports.items():
            torch.testing.assert_close(fast.sample(kind, expected, lambda logits: logits), port.logits(expected))


def check_steps(fast: DecodeModel) -> None:
    """Position after position, two rows of which one is behind the other: what the trunk makes of all positions at once."""
    model, cache, length = fast.model, RowCache(fast.model.trunk.config.num_hidden_layers), 5
    given, positions = torch.randn(2, length, model.width), torch.arange(length).expand(2, -1)
    expected = model.hidden(given, torch.ones(length, length, dtype=torch.bool).tril()[None, None], positions)
    cache.reserve(2, length)
    rows = torch.arange(2)
    for step in range(length + 1):
        places = (torch.tensor([step, step - 1])).clamp(0, length - 1)
        hidden = fast.advance(given[rows, places], places, int(places.max()) + 1, cache)
        torch.testing.assert_close(hidden, expected[rows, places], atol=1e-5, rtol=1e-5)
        for kind, port in model.vocabulary_ports.items():
            torch.testing.assert_close(fast.sample(kind, hidden, lambda logits: logits), port.logits(hidden))


@torch.inference_mode()
def test_other_trunks_go_through_transformers() -> None:
    model = tiny_model(400)
    gpt = {"model_type": "gpt_neox", "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = UnifiedModel(replace(model.config, trunk=gpt | {"intermediate_size": 64, "max_position_embeddings": 64})).eval()
    fast = DecodeModel(model)
    assert fast.layers is None
    check_steps(fast)


def test_changed_weights_are_noticed() -> None:
    """A trainer draws samples with the model that it trains."""
    model = tiny_model(len(tiny_text_tokenizer()))
    fast = DecodeModel(model)
    assert fast.is_current()
    with torch.no_grad():
        model.codes.head[0].bias.add_(1.0)
    assert not fast.is_current()


@pytest.mark.parametrize("trunk", [{}, {"model_type": "qwen2"}], ids=["llama", "qwen2 with biases"])
@torch.no_grad()
def test_weights_that_are_read_in_place_may_change_there(trunk: dict[str, str]) -> None:
    """As on a GPU, where a step that was captured with a policy's weights goes on with those that it has learned."""
    model = tiny_model(400)
    model = UnifiedModel(replace(model.config, trunk=model.config.trunk | trunk)).eval()
    fast = DecodeModel(model, kernels=DecodeKernels(torch.device("cpu")))
    x, positions = torch.randn(3, model.width), torch.zeros(3, dtype=torch.long)
    before = fast.advance(x, positions, 1, RowCache(2))
    for parameter in model.parameters():
        parameter.mul_(1.1).add_(0.01)
    assert fast.reads_in_place and fast.is_current()
    fresh = DecodeModel(model)
    assert not fresh.reads_in_place
    expected = fresh.advance(x, positions, 1, RowCache(2))
    torch.testing.assert_close(fast.advance(x, positions, 1, RowCache(2)), expected, atol=1e-5, rtol=1e-5)
    assert relative_error(before, expected) > 0.01
    up = model.trunk.layers[0].mlp.up_proj.weight
    up.data = up.data.clone()
    assert not fast.is_current()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_are_products(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"no packed products in {dtype} here")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(48, out, dtype=dtype) for out in (32, 16, 80)]
    for rows in (1, 2, 7, 16, 40):
        x = torch.randn(rows, 48, dtype=dtype)
        packed = make_cpu_linear(layers)
        assert isinstance(packed, PackedLinear)
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
        torch.testing.assert_close(packed(x), expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)


@pytest.mark.parametrize(("weights", "error"), [("int8", 0.02), ("int4", 0.15)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_of_few_bits_are_near(weights: str, error: float, has_bias: bool) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(128, out, bias=has_bias, dtype=torch.bfloat16) for out in (64, 32)]
    x = torch.randn(5, 128, dtype=torch.bfloat16)
    few = make_cpu_linear(layers, weights)
    assert isinstance(few, {"int8": IntegerLinear if has_integer_products() else Int8Linear, "int4": Int4Linear}[weights])
    assert relative_error(few(x), torch.cat([layer(x) for layer in layers], dim=-1)) < error


@pytest.mark.parametrize("way", [IntegerLinear, Int8Linear])
def test_rows_of_int8_do_not_hang_on_their_company(way: type) -> None:
    """A row a thousand times as large beside it, or one of zeros, changes nothing, and each is near."""
    if way is IntegerLinear and not has_integer_products():
        pytest.skip("this processor has no integer products")
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64, dtype=torch.bfloat16)
    x = torch.randn(4, 256, dtype=torch.bfloat16)
    x[1] *= 1000
    x[2] = 0
    few = way(layer.weight, layer.bias)
    for row, alone in enumerate(x):
        assert torch.equal(few(x)[row], few(alone[None])[0])
        assert relative_error(few(alone[None]), layer(alone[None])) < 0.02


@pytest.mark.parametrize(("weights", "error"), [("int8", 0.02), ("fp8", 0.06)])
def test_so_are_those_of_torchao(weights: str, error: float) -> None:
    """What a GPU decodes with; int4 has no CPU kernel there."""
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 64, dtype=torch.bfloat16)
    x = torch.randn(5, 128, dtype=torch.bfloat16)
    quantized = quantize_by_torchao(layer.weight, layer.bias, weights)
    with torch.inference_mode():
        assert relative_error(quantized(x), layer(x)) < error


def test_a_layer_that_has_no_whole_groups_keeps_its_bits() -> None:
    check_bits_are_kept(torch.nn.Linear(100, 64, dtype=torch.bfloat16), "int4")


def check_bits_are_kept(layer: torch.nn.Linear, weights: str) -> None:
    kept, x = make_cpu_linear([layer], weights), torch.randn(3, layer.in_features, dtype=layer.weight.dtype)
    assert type(kept) is type(make_cpu_linear([layer]))
    torch.testing.assert_close(kept(x), layer(x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("weights", "sizes", "integers"), [("int4", (64, 40), True), ("int8", (100, 64), False)])
def test_a_layer_that_has_no_whole_blocks_keeps_its_bits(
    weights: str, sizes: tuple[int, int], integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's kernels raise, or end the process."""
    monkeypatch.setattr("unimm.inference.kernels.quantized_linear.has_integer_products", lambda: integers)
    check_bits_are_kept(torch.nn.Linear(*sizes, dtype=torch.bfloat16), weights)


def test_int8_without_integer_products_takes_what_is_not_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimm.inference.kernels.quantized_linear.has_integer_products", lambda: False)
    layer = torch.nn.Linear(64, 48, dtype=torch.bfloat16)
    x_RI = torch.randn(64, 3, dtype=torch.bfloat16).T
    torch.testing.assert_close(make_cpu_linear([layer], "int8")(x_RI), layer(x_RI), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("weights", "error"), [("int8", 0.05), ("int4", 0.4)])
@torch.inference_mode()
def test_a_step_of_few_bits_is_near(weights: str, error: float) -> None:
    model = tiny_model(400).bfloat16()
    x, positions = torch.randn(3, model.width, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.long)
    plain, few = (DecodeModel(model, kind).advance(x, positions, 1, RowCache(2)) for kind in (None, weights))
    assert 0 < relative_error(few, plain) < error


@pytest.mark.parametrize("trunk", [{}, {"model_type": "qwen2"}], ids=["llama", "qwen2 with biases"])
@torch.no_grad()
def test_several_decoders_leave_weights_where_the_first_has_joined_them(trunk: dict[str, str]) -> None:
    """Else each would find that the other has moved them, and begin anew: captured steps, and what is kept of prompts."""
    model = tiny_model(400)
    model = UnifiedModel(replace(model.config, trunk=model.config.trunk | trunk)).eval()
    first, second = (DecodeModel(model, kernels=DecodeKernels(torch.device("cpu"))) for _ in range(2))
    assert first.is_current() and second.is_current()
    for parameter in model.parameters():
        parameter.mul_(1.1).add_(0.01)
    x, positions = torch.randn(3, model.width), torch.zeros(3, dtype=torch.long)
    expected = DecodeModel(model).advance(x, positions, 1, RowCache(2))
    for one in (first, second):
        torch.testing.assert_close(one.advance(x, positions, 1, RowCache(2)), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_neighbours_of_other_memory_are_joined_by_a_copy() -> None:
    """Of one tensor in another order, with a gap, or not contiguous."""
    whole = torch.randn(9, 4)
    for parts in ([whole[3:5], whole[:3]], [whole[:3], whole[4:6]], [whole[:3, :2], whole[3:6, :2]], [whole[:3], whole[:3]]):
        layers = [torch.nn.Linear(part.shape[1], len(part), bias=False) for part in parts]
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.data = part
        joint, bias = join(layers)
        assert torch.equal(joint, torch.cat(parts)) and bias is None
        assert joint.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("has_bias", [False, True])
def test_joint_weights_follow_the_layers_that_share_them(has_bias: bool) -> None:
    """As on a GPU, where there are no copies: a layer that learns changes the joint product."""
    layers = [torch.nn.Linear(8, out, bias=has_bias) for out in (3, 5)]
    (joint, bias), x = join(layers), torch.randn(2, 8)
    before = [layer(x) for layer in layers]
    share(layers, joint, bias)
    assert all(torch.equal(layer(x), old) for layer, old in zip(layers, before, strict=True))
    optimizer = torch.optim.SGD(layers[1].parameters(), lr=1.0)
    layers[1](x).sum().backward()
    optimizer.step()
    both = torch.cat([layer(x) for layer in layers], dim=1).detach()
    torch.testing.assert_close(torch.nn.functional.linear(x, joint, bias), both)
    assert not torch.equal(layers[1](x), before[1])


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().float().norm() / expected.detach().float().norm())


def test_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    q, keys, values = torch.randn(3, 6, 8), torch.randn(3, 2, 10, 8), torch.randn(3, 2, 10, 8)
    mask = torch.zeros(3, 1, 1, 10).masked_fill(torch.arange(10) > torch.tensor([4, 9, 0])[:, None, None, None], -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None], keys.repeat_interleave(3, 1), values.repeat_interleave(3, 1), attn_mask=mask
    )[:, :, 0]
    for way in (attend, attend_fused):
        torch.testing.assert_close(way(q, keys, values, mask.repeat(1, 2, 1, 1), 8**-0.5), expected)
    halves = (one.half() for one in (q, keys, values))  # as Apple's GPUs have it
    torch.testing.assert_close(attend(*halves, mask.repeat(1, 2, 1, 1), 8**-0.5).float(), expected, atol=1e-2, rtol=1e-2)


@torch.inference_mode()
def test_kinds_have_a_head_each() -> None:
    """Every kind that has a vocabulary: its logits from its own head, arranged where the model's is."""
    model = tiny_model(400)
    fast, hidden = DecodeModel(model), torch.randn(3, model.width)
    assert set(fast.heads) == set(model.vocabulary_ports)
    for kind, port in model.vocabulary_ports.items():
        torch.testing.assert_close(fast.heads[kind](hidden), port.logits(hidden))


def test_few_bits_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="not for float32 with llama"):
        DecodeModel(tiny_model(400), "int8")
    with pytest.raises(ValueError, match="fp8 weights are for GPUs"):
        DecodeModel(tiny_model(400).bfloat16(), "fp8")
    with pytest.raises(ValueError, match="no weights 'int3': choose one of int8, int4, fp8"):
        DecodeModel(tiny_model(400), "int3")


@torch.inference_mode()
def test_without_room_for_copies_it_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("unimm.inference.kernels.llama_decode._has_room_for_copies", lambda model: False)
    fast = DecodeModel(tiny_model(400))
    assert fast.layers is None and not fast.heads and "Too little memory" in caplog.text
    check_steps(fast)
