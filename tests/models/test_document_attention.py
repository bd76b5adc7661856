"""Documents side by side attend each to itself: the numbers of plain masked attention, whatever their lengths."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimm.models import document_layout
from unimm.models.document_attention import attend_within_documents

SIZES = st.lists(st.integers(-4, 40).filter(bool), min_size=1, max_size=7).filter(lambda sizes: max(sizes) > 0)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: list[int], wanted: torch.Tensor | None) -> torch.Tensor:
    """All scores at once, and a mask; where nothing may be looked at, zero."""
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes).abs())
    is_padding = torch.repeat_interleave(torch.tensor(sizes) < 0, torch.tensor(sizes).abs())
    places = torch.arange(len(numbers))
    sees = (numbers[:, None] == numbers) & (places <= places[:, None]) & ~is_padding[:, None]
    sees = sees if wanted is None else sees[wanted]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("mhe,nhe->hmn", q, k).masked_fill(~sees, float("-inf"))
    return torch.einsum("hmn,nhe->mhe", scores.softmax(-1).nan_to_num(0.0), v)


def gradients(seen: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1), dtype=seen.dtype)
    return list(torch.autograd.grad((seen * weights).sum(), inputs))


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Documents of 40 come in stretches, as long ones do."""
    monkeypatch.setattr(document_layout, "STRETCH", 16)
    document_layout.arrange_all.cache_clear()
    yield
    document_layout.arrange_all.cache_clear()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES, st.data())
def test_is_plain_attention(sizes: list[int], data: st.DataObject) -> None:
    """Values and gradients, of all positions and of some; also where heads share keys."""
    num_positions, num_shared = sum(map(abs, sizes)), data.draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(0)
    heads = (4, 4 // num_shared, 4 // num_shared)
    q, k, v = (torch.randn(num_positions, each, 3, generator=generator, dtype=torch.float64) for each in heads)
    wanted = None
    if data.draw(st.booleans()):
        wanted = torch.tensor(sorted(data.draw(st.sets(st.integers(0, num_positions - 1), min_size=1))))
        q = q[wanted]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    made = attend_within_documents(q, k, v, torch.tensor(sizes), wanted)
    expected = plain(q, k, v, sizes, wanted)
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(gradients(made, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_values_of_another_width() -> None:
    """As DeepSeek-V3's trunk has them."""
    q, k, v = (torch.randn(60, 2, width, dtype=torch.float64).requires_grad_() for width in (3, 3, 5))
    made, expected = attend_within_documents(q, k, v, torch.tensor([20, -4, 36]), None), plain(q, k, v, [20, -4, 36], None)
    torch.testing.assert_close(made, expected)
    for mine, theirs in zip(gradients(made, [q, k, v]), gradients(expected, [q, k, v]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropped_weights_are_those_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_layout, "TOGETHER", 32)
    sizes = torch.tensor([3, -1, 4, 2])
    qkv = [torch.randn(10, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attend_within_documents(q, k, v, sizes, None, dropout=0.4)

    assert torch.autograd.gradcheck(attend, qkv)
