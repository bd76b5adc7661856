"""The last few things that were expensive to open or to read, kept for the next record that needs them.

They belong to one process: a pickled copy and a forked child begin with none, because what a library opened may not live
through either.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ProcessLocalLRU(Generic[T]):
    """At most `size` values by key; the one that was not asked for the longest goes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._process = os.getpid()

    def __contains__(self, key: Hashable) -> bool:
        return self._process == os.getpid() and key in self._values

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made where it is not kept."""
        if self._process != os.getpid():
            self._values, self._process = OrderedDict(), os.getpid()
        if key not in self._values:
            value = make()
            while len(self._values) >= self.size:
                self._values.popitem(last=False)
            self._values[key] = value
        self._values.move_to_end(key)
        return self._values[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["size"])
