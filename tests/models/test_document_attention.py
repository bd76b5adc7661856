"""Documents side by side attend each to itself: the numbers of plain masked attention, whatever their lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.models import attention
from unimm.models.attention import attend_within_documents
from unimm.native import library_beside

SIZES = st.lists(st.integers(-9, 150).filter(bool), min_size=1, max_size=7).filter(lambda sizes: max(sizes) > 0)

TOLERANCES = {torch.float64: 1e-10, torch.float32: 3e-6, torch.bfloat16: 2e-2}
"""Largest error as a share of the largest number, of those that go in, too: slopes are differences of their products."""


def plain(qkv: list[torch.Tensor], sizes: list[int], wanted: torch.Tensor | None) -> torch.Tensor:
    """All scores at once, and a mask; where nothing may be looked at, zero."""
    q, k, v = qkv
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes).abs())
    is_padding = torch.repeat_interleave(torch.tensor(sizes) < 0, torch.tensor(sizes).abs())
    places = torch.arange(len(numbers))
    sees = (numbers[:, None] == numbers) & (places <= places[:, None]) & ~is_padding[:, None]
    sees = sees if wanted is None else sees[wanted]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("mhe,nhe->hmn", q, k).masked_fill(~sees, float("-inf"))
    return torch.einsum("hmn,nhe->mhe", scores.softmax(-1).nan_to_num(0.0), v)


def with_gradients(seen: torch.Tensor, qkv: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(seen.dtype)
    return [seen.detach(), *torch.autograd.grad(seen, qkv, weights)]


def check(
    qkv: list[torch.Tensor], sizes: list[int], wanted: torch.Tensor | None = None, tolerance: float | None = None
) -> None:
    """Values and slopes against those of plain attention to the same numbers in double precision."""
    given = [x.requires_grad_() for x in qkv]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    made = with_gradients(attend_within_documents(*given, torch.tensor(sizes), wanted), given)
    expected = with_gradients(plain(exact, sizes, wanted), exact)
    largest = max(float(x.detach().abs().max()) for x in exact)
    for mine, theirs in zip(made, expected, strict=True):
        assert mine.dtype == qkv[0].dtype
        allowed = (tolerance or TOLERANCES[mine.dtype]) * max(1.0, largest, float(theirs.abs().max()))
        assert float((mine.double() - theirs).abs().max()) <= allowed


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=40, deadline=None)
@given(SIZES, st.data())
def test_is_plain_attention(dtype: torch.dtype, sizes: list[int], data: st.DataObject) -> None:
    """Of all positions and of some; also where heads share keys, and rows are narrower and wider than a vector."""
    num_positions, num_shared = sum(map(abs, sizes)), data.draw(st.sampled_from([1, 2]))
    width = data.draw(st.sampled_from([2, 30, 32, 66]))
    wanted = None
    if data.draw(st.booleans()):
        wanted = torch.tensor(sorted(data.draw(st.sets(st.integers(0, num_positions - 1), min_size=1))))
    generator = torch.Generator().manual_seed(0)
    numbers = (num_positions if wanted is None else len(wanted), num_positions, num_positions)
    heads = (4, 4 // num_shared, 4 // num_shared)
    made = (torch.randn(*each, width, generator=generator) for each in zip(numbers, heads, strict=True))
    q, k, v = (x.to(dtype) for x in made)
    check([q * width**-0.5, k, v], sizes, wanted)


@pytest.fixture
def kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By nothing else can documents attend."""
    if attention._kernel() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.delattr(attention, "_one_by_one")


@pytest.mark.usefixtures("kernel_is_used")
def test_far_scores_and_long_documents() -> None:
    """A softmax over a thousand keys of which one counts, and one of which none does."""
    q, k, v = (torch.randn(1100, 2, 32, generator=torch.Generator().manual_seed(2)) for _ in range(3))
    check([q * 4, k, v], [1000, -50, 50], tolerance=3e-5)  # scores of up to 80 are so exact
    check([q * 0, k * 100, v], [1100])


@pytest.mark.usefixtures("kernel_is_used")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    """Else a training would not notice that it has come to grief; documents beside it are not harmed."""
    for number in (float("nan"), float("inf")):
        q, k, v = (torch.rand(60, 2, 32).to(dtype) for _ in range(3))
        k[25, 1, 7] = number
        seen = attend_within_documents(q, k, v, torch.tensor([20, 20, 20]), None)
        assert not seen[25:40, 1].isfinite().all(-1).any()
        assert seen[:25].isfinite().all() and seen[40:].isfinite().all() and seen[:, 0].isfinite().all()


@pytest.mark.usefixtures("kernel_is_used")
def test_number_of_threads_changes_no_bit() -> None:
    q, k, v = (torch.randn(500, 4, 32).bfloat16().requires_grad_() for _ in range(3))
    threads = torch.get_num_threads()
    try:
        made = []
        for number in (1, 3):
            torch.set_num_threads(number)
            seen = attend_within_documents(q, k, v, torch.tensor([100, 150, -10, 240]), None)
            made.append(with_gradients(seen, [q, k, v]))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_together_is_refused() -> None:
    """Nothing of it may reach the kernel, which trusts what it is told."""
    q, k, v = (torch.randn(60, 4, 8) for _ in range(3))
    sizes = torch.tensor([20, -4, 36])
    with pytest.raises(ValueError, match="Documents of 60 positions, 60 of them with queries, have 60 keys and 40 queries"):
        attend_within_documents(q[:40], k, v, sizes, None)
    with pytest.raises(ValueError, match="Documents of 59 positions"):
        attend_within_documents(q, k, v, torch.tensor([59]), None)
    for others in ((k.bfloat16(), v), (k, v.bfloat16()), (k[:, :3], v[:, :3])):
        with pytest.raises((RuntimeError, ValueError)):
            attend_within_documents(q, *others, sizes, None)


def test_wanted_positions_in_any_layout() -> None:
    q, k, v = (torch.randn(60, 2, 8) for _ in range(3))
    sizes, wanted = torch.tensor([20, -4, 36]), torch.arange(0, 60, 2)
    expected = attend_within_documents(q[wanted], k, v, sizes, wanted)
    for same in (wanted.int(), torch.arange(60)[::2]):
        assert torch.equal(attend_within_documents(q[wanted], k, v, sizes, same), expected)


def test_values_of_another_width() -> None:
    """As DeepSeek-V3's trunk has them."""
    q, k, v = (torch.randn(60, 2, width) for width in (4, 4, 6))
    check([q, k, v], [20, -4, 36])


def test_without_a_compiler_documents_attend_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    library_beside.cache_clear()
    try:
        for _ in range(2):
            check([torch.randn(60, 2, 4) for _ in range(3)], [20, -4, 36])
    finally:
        library_beside.cache_clear()
    (record,) = caplog.records
    assert "no-such-compiler: install g++, or name yours by CXX=" in record.getMessage()


def test_dropped_weights_are_those_of_the_backward_pass() -> None:
    sizes = torch.tensor([3, -1, 4, 2])
    qkv = [torch.randn(10, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attend_within_documents(q, k, v, sizes, None, dropout=0.4)

    assert torch.autograd.gradcheck(attend, qkv)
