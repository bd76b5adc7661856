"""What all layers of one decode step share: which rows its positions belong to, their rotation, and how much of the
cache is read.

Shapes: R rows, P new positions of all of them, W of one row at most, S slots in use, d head width.
"""

from dataclasses import dataclass, field
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Windows:
    """Rows that have several new positions in one step, some more than others; their positions lie row after row.

    rows_P: the row of each position. starts: where each row's positions begin, and the end of the last one (R + 1,).
    sources_RW: which position is at each place of a rectangle of rows, their last one again where they have fewer; None: it is
        full. places_P: the other way round, counted over the rectangle row after row.
    """

    num_rows: int
    width: int
    rows_P: torch.Tensor
    starts: torch.Tensor
    sources_RW: torch.Tensor | None
    places_P: torch.Tensor | None

    @classmethod
    def of(cls, widths: list[int], device: torch.device) -> "Windows":
        """Rows of these numbers of positions, one or more."""
        most, total = max(widths), sum(widths)
        rows = [row for row, width in enumerate(widths) for _ in range(width)]
        ends = list(accumulate(widths))
        sources = places = None
        if total < most * len(widths):
            table = [[end - width + min(at, width - 1) for at in range(most)] for end, width in zip(ends, widths, strict=True)]
            sources = torch.tensor(table, device=device)
            places = torch.tensor([row * most + at for row, width in enumerate(widths) for at in range(width)], device=device)
        rows_P, starts = (torch.tensor(one, device=device) for one in (rows, [0, *ends]))
        return cls(len(widths), most, rows_P, starts, sources, places)

    def spread(self, x_P: torch.Tensor) -> torch.Tensor:
        """(P, ...) -> (R, W, ...)."""
        return x_P.unflatten(0, (self.num_rows, self.width)) if self.sources_RW is None else x_P[self.sources_RW]

    def gather(self, x_RW: torch.Tensor) -> torch.Tensor:
        """(R, W, ...) -> (P, ...)."""
        flat = x_RW.flatten(0, 1)
        return flat if self.places_P is None else flat[self.places_P]


@dataclass(frozen=True)
class StepInputs:
    """Of one step: cosines and sines (P, 1, d) of positions (P,), slots that any row needs, and windows (None: one position a
    row, row by row)."""

    cos_P1d: torch.Tensor
    sin_P1d: torch.Tensor
    positions_P: torch.Tensor
    used: int
    windows: Windows | None
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.positions_P) if self.windows is None else self.windows.num_rows

    def mask(self, num_kv_heads: int, group: int) -> torch.Tensor:
        """0 where a position may look, minus infinity elsewhere: (R, G, 1, S), or with windows (R, G, H / G * W, S). Made once
        for all layers."""
        key = (num_kv_heads, group)
        if key not in self._masks:
            unseen_PS = torch.arange(self.used, device=self.positions_P.device) > self.positions_P[:, None]
            mask_PS = torch.zeros(unseen_PS.shape, device=unseen_PS.device).masked_fill(unseen_PS, -torch.inf)
            if self.windows is None:
                self._masks[key] = mask_PS[:, None, None].repeat(1, num_kv_heads, 1, 1)
            else:
                self._masks[key] = self.windows.spread(mask_PS)[:, None].repeat(1, num_kv_heads, group, 1)
        return self._masks[key]
