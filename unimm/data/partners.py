"""Records with a partner: another record of the same data set, whose answer is no answer to this one's prompt.

Kahneman-Tversky optimization (arXiv 2402.01306) measures by such mismatched pairs how far a model has moved as a whole. Which
record is whose partner depends on the data set alone: the next one of the same kind, so neither rows nor processes matter.
"""

from functools import partial

from unimm.data.binding import bind
from unimm.data.records import Dataset, DatasetContext, Record, check, key_at, unchecked

TRIES = 64
"""So many of the records behind one are tried: others are of another kind, or cannot be read."""


class WithPartners:
    """A data set whose records name their partner, which is read when it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        return self.dataset[index].with_partner(partial(self.partner_of, index))

    def bind(self, context: DatasetContext) -> "WithPartners":
        """The same as it is used with these networks."""
        return WithPartners(bind(self.dataset, context))

    def unchecked(self, index: int) -> Record:
        """A record whose image was not compared (`unimm.data.stores.digests`)."""
        return unchecked(self.dataset, index).with_partner(partial(self.partner_of, index))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return key_at(self.dataset, index)

    def check(self, index: int) -> None:
        """Compare a record's image."""
        check(self.dataset, index)

    def partner_of(self, index: int) -> Record | None:
        """The next record, after the last one the first, that holds an answer where this one does, or a drawing; None: there is
        none among the `TRIES` behind it."""
        own, count = bool(unchecked(self.dataset, index).questions), len(self.dataset)
        for step in range(1, min(TRIES, count - 1) + 1):
            try:
                other = unchecked(self.dataset, (index + step) % count)
            except (ValueError, OSError):  # a bad record, which the mixture counts when its own turn comes
                continue
            if bool(other.questions) == own:
                return other
        return None
