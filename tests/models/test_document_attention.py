"""Documents side by side attend each to itself: the numbers of plain masked attention, whatever their lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.models import document_attention
from unimm.models.document_attention import ALIKE, ROUNDED, TOGETHER, arrange_all, arrange_asking, attend_within_documents

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


@settings(max_examples=60, deadline=None)
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


@given(st.lists(st.integers(-300, 1500).filter(bool), min_size=1, max_size=40), st.sampled_from([1, 2]))
def test_every_position_has_one_place(sizes: list[int], num_shared: int) -> None:
    """Lengths are rounded; no group is large but of one document; no document stands beside a much longer one."""
    groups, queries, keys, *_ = arrange_all(tuple(sizes), 2, 2 // num_shared)
    owners = torch.repeat_interleave(torch.tensor(sizes) > 0, torch.tensor(sizes).abs())
    num_rows = len(queries.read)
    assert ((queries.back < num_rows).view(-1, 2) == owners[:, None]).all()
    placed = queries.back[queries.back < num_rows]
    assert torch.cat([placed, queries.nobodys]).sort().values.tolist() == list(range(num_rows))
    assert (queries.read[placed] == (queries.back < num_rows).nonzero().squeeze(1)).all()
    assert (keys.read[placed] == queries.read[placed] // num_shared).all()
    assert [one.keys.start for one in groups] == [0, *(one.keys.stop for one in groups)][: len(groups)]
    position = queries.read // 2
    for one in groups:
        total = (one.keys.stop - one.keys.start) // 2
        assert total % (one.num_documents * ROUNDED) == 0 and (one.num_documents == 1 or total <= TOGETHER)
        places_nHL = position[one.keys].view(one.num_documents, 2, -1)
        assert (places_nHL[:, 0] == places_nHL[:, 1]).all()
        rounded = -(-(places_nHL[:, 0] - places_nHL[:, 0, :1] + 1).amax(1) // ROUNDED) * ROUNDED
        assert rounded.max() <= ALIKE * rounded.min()


def test_documents_in_which_nothing_asks_are_passed_over() -> None:
    sizes, wanted = torch.tensor([5, -2, 3, 40]), torch.tensor([1, 4, 12, 30])
    groups, queries, keys, *_ = arrange_asking(sizes, wanted, 1, 1)
    assert [queries.read[one.queries][:2].tolist() for one in groups] == [[0, 1], [2, 3]]
    assert [keys.read[one.keys][:3].tolist() for one in groups] == [[0, 1, 2], [10, 11, 12]]
    assert [one.asking.tolist()[0][:2] for one in groups if one.asking is not None] == [[1, 4], [2, 20]]


def test_shapes_repeat() -> None:
    """Documents of a hundred lengths come in few shapes: each would be compiled anew."""
    shapes = set()
    for seed in range(20):
        lengths = torch.randint(130, 240, (32,), generator=torch.Generator().manual_seed(seed))
        groups = arrange_all(tuple(lengths.tolist()), 1, 1).groups
        shapes |= {(one.num_documents, one.keys.stop - one.keys.start) for one in groups}
    assert len(shapes) < 40


def test_dropped_weights_are_those_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_attention, "TOGETHER", 32)
    sizes = torch.tensor([3, -1, 4, 2])
    qkv = [torch.randn(10, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attend_within_documents(q, k, v, sizes, None, dropout=0.4)

    assert torch.autograd.gradcheck(attend, qkv)
