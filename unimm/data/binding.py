"""Data sets as they are used with certain networks: those that hold what a network made of images learn which one it is."""

import copy
from typing import Any

from unimm.data.records import Dataset, DatasetContext

MAX_WRAPPED = 64
"""Data sets that another one holds in a list; a longer list is not looked through."""


def bind(dataset: Dataset, context: DatasetContext) -> Dataset:
    """A data set as it is used with the networks of a context: by its own `bind` where it has one. Any other is returned as it
    is, with the data sets that it holds as attributes bound, so that a wrapper need not know of this.

    Raises:
        ValueError: it, or a data set that it wraps, holds codes or features of another network.
    """
    return _bound(dataset, context, {})


def _bound(value: Any, context: DatasetContext, done: dict[int, Any]) -> Any:
    """`value` bound, where it is a data set or a few of them in a list, tuple or dict; anything else as it is.

    done: what became of values, by their ids.
    """
    is_dataset = all(hasattr(value, name) for name in ("__len__", "__getitem__", "__dict__"))
    is_group = isinstance(value, list | tuple | dict) and len(value) <= MAX_WRAPPED
    if not (is_dataset or is_group):
        return value
    if id(value) not in done:
        done[id(value)] = value  # what refers to itself ends here
        done[id(value)] = _bound_dataset(value, context, done) if is_dataset else _bound_group(value, context, done)
    return done[id(value)]


def _bound_dataset(dataset: Any, context: DatasetContext, done: dict[int, Any]) -> Any:
    if hasattr(type(dataset), "bind"):  # of its class: a wrapper may pass unknown attributes on to what it wraps
        return dataset.bind(context)
    held = vars(dataset)
    bound = {name: _bound(one, context, done) for name, one in held.items()}
    if all(bound[name] is one for name, one in held.items()):
        return dataset
    other = copy.copy(dataset)
    vars(other).update(bound)
    return other


def _bound_group(group: Any, context: DatasetContext, done: dict[int, Any]) -> Any:
    members = list(group.values()) if isinstance(group, dict) else list(group)
    bound = [_bound(one, context, done) for one in members]
    if all(new is old for new, old in zip(bound, members, strict=True)):
        return group
    if isinstance(group, dict):
        return dict(zip(group, bound, strict=True))
    return bound if isinstance(group, list) else tuple(bound)
