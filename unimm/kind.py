"""What an element of a sequence is: a kind, with a number to stand in tensors and a name for people."""

import zlib
from typing import ClassVar

_BUILT_IN = {"TEXT": 0, "PIXELS": 1, "CODES": 2, "LATENTS": 3}


class Kind(int):
    """What an element of a sequence is, and thus which port embeds and predicts it.

    A number, to stand in tensors, and a name: `Kind("DEPTH")` is the kind of that name, one and the same wherever it is
    written, with a number that follows from the name. A port of that kind is all that a model needs to know it.

    Raises ValueError where the number of a name is another name's already.
    """

    TEXT: ClassVar["Kind"]
    """Token ids of the text tokenizer; predicted one by one."""
    PIXELS: ClassVar["Kind"]
    """An image looked at: continuous features, several positions an image; never predicted."""
    CODES: ClassVar["Kind"]
    """An image written: codes of the image tokenizer; predicted one by one."""
    LATENTS: ClassVar["Kind"]
    """An image written: patches of a continuous image tokenizer's latents behind the place of their time; predicted all at
    once, by a flow."""

    name: str
    _known: ClassVar[dict[int, "Kind"]] = {}

    def __new__(cls, name: str) -> "Kind":
        number = _BUILT_IN.get(name, zlib.crc32(name.encode()) | 1 << 32)
        known = cls._known.get(number)
        if known is None:
            known = cls._known[number] = super().__new__(cls, number)
            known.name = name
        if known.name != name:
            raise ValueError(f"The kinds {name!r} and {known.name!r} would have the same number: give one another name.")
        return known

    @classmethod
    def of(cls, number: int) -> "Kind":
        """The kind with this number, which was made in this process before."""
        return cls._known[number]

    def __repr__(self) -> str:
        return f"Kind({self.name!r})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[type["Kind"], tuple[str]]:
        return Kind, (self.name,)


Kind.TEXT, Kind.PIXELS, Kind.CODES, Kind.LATENTS = (Kind(name) for name in _BUILT_IN)
