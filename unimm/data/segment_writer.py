"""Text pieces, special ids and images, written one after another -> segments; neighbouring text is encoded as one piece.

Ids are joined, never strings: text goes through the tokenizer without its control tokens, special tokens enter by id.
"""

from unimm.data.text import TextTokenizer
from unimm.sequence import Segment, Sequence


class SegmentWriter:
    """Collects text pieces and ids into segments.

    condition: of all that is written, where nothing else is said.
    """

    def __init__(self, tokenizer: TextTokenizer, condition: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._condition = condition
        self._segments: list[Segment] = []
        self._ids: list[int] = []
        self._piece = ""
        self._mode: tuple[bool, str | None] = (False, condition)

    def text(self, text: str, learn: bool = False, role: bool = False, condition: str | None = "inherit") -> None:
        """Plain text; with `role`, the name of an added token becomes its id."""
        added = self._tokenizer.added_id(text) if role else None
        if added is not None:
            self.id(added, learn, self._condition)
            return
        self._switch(learn, self._condition if condition == "inherit" else condition)
        self._piece += text

    def id(self, token: int, learn: bool = False, condition: str | None = "inherit") -> None:
        """A special id."""
        self._switch(learn, self._condition if condition == "inherit" else condition)
        self._encode()
        self._ids.append(token)

    def segment(self, segment: Segment) -> None:
        """A whole segment, such as an image."""
        self._close()
        self._segments.append(segment)

    def sequence(self, *last: Segment) -> Sequence:
        """Everything written so far, and the given last segment."""
        self._close()
        return Sequence((*self._segments, *last))

    def _switch(self, learn: bool, condition: str | None) -> None:
        if self._mode != (learn, condition):
            self._close()
            self._mode = (learn, condition)

    def _encode(self) -> None:
        if self._piece:
            self._ids += self._tokenizer.encode(self._piece)
            self._piece = ""

    def _close(self) -> None:
        self._encode()
        if self._ids:
            learn, condition = self._mode
            self._segments.append(Segment.text(self._ids, learn=learn, condition=condition))
            self._ids = []
