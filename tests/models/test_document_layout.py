"""Documents of any lengths side by side: everything has its place, in few shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from unimm.models.document_layout import ALIKE, MOST_STRETCHES, ROUNDED, STRETCH, TOGETHER, arrange_all, arrange_asking


@given(st.lists(st.integers(-300, 1500).filter(bool), min_size=1, max_size=20), st.sampled_from([1, 2]))
def test_every_position_asks_once_and_sees_its_past(sizes: list[int], num_shared: int) -> None:
    """Lengths are rounded; no group is large but of one stretch; no stretch stands beside one that sees much more."""
    groups, queries, keys, *_ = arrange_all(tuple(sizes), 2, 2 // num_shared)
    owners = torch.repeat_interleave(torch.tensor(sizes) > 0, torch.tensor(sizes).abs())
    (back,), num_rows = queries.back, len(queries.read)
    assert ((back < num_rows).view(-1, 2) == owners[:, None]).all()
    placed = back[back < num_rows]
    assert torch.cat([placed, queries.nobodys]).sort().values.tolist() == list(range(num_rows))
    assert (queries.read[placed] == (back < num_rows).nonzero().squeeze(1)).all()
    keys_placed = torch.cat([torch.empty(0, dtype=torch.long), *(each[each < len(keys.read)] for each in keys.back)])
    assert torch.cat([keys_placed, keys.nobodys]).sort().values.tolist() == list(range(len(keys.read)))
    for each in keys.back:
        is_placed = each < len(keys.read)
        assert (keys.read[each[is_placed]] == is_placed.nonzero().squeeze(1) // num_shared).all()
    is_nobodys = torch.zeros(num_rows, dtype=torch.bool).index_fill_(0, queries.nobodys, True)
    starts = torch.tensor(sizes).abs().cumsum(0) - torch.tensor(sizes).abs()
    for one in groups:
        asking = (queries.read[one.queries] // 2).view(one.num_stretches, 2, -1)
        seen = (keys.read[one.keys] * num_shared // 2).view(one.num_stretches, 2, -1)
        assert asking.shape[2] % ROUNDED == seen.shape[2] % ROUNDED == 0
        assert seen.shape[2] == one.first + asking.shape[2]
        assert one.num_stretches == 1 or one.num_stretches * asking.shape[2] * seen.shape[2] <= TOGETHER
        assert set((asking[:, 0, 0] - one.first).tolist()) <= set(starts.tolist())
        assert (seen[:, 0, 0] == asking[:, 0, 0] - one.first).all()
        # A query's own key is among what it sees, at its own place.
        own = ~is_nobodys[one.queries].view_as(asking)
        assert (seen[:, :, one.first :][own] == asking[own]).all()
        num_keys = (asking * own).amax((1, 2)) - seen[:, 0, 0] + 1
        rounded = -(-num_keys // ROUNDED) * ROUNDED
        assert rounded.max() <= ALIKE * rounded.min()
    assert all(len([one for one in groups if size > one.first]) >= min(MOST_STRETCHES, -(-size // STRETCH)) for size in sizes)


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
        shapes |= {(one.num_stretches, one.queries.stop - one.queries.start, one.keys.stop - one.keys.start) for one in groups}
    assert len(shapes) < 60, len(shapes)


def test_no_documents_at_all() -> None:
    groups, queries, keys, *_ = arrange_all((-5,), 2, 2)
    assert not groups and not len(queries.read) and not len(keys.read)
    assert queries.scatter(torch.ones(1, 3), 2).tolist() == torch.zeros(5, 2, 3).tolist()
