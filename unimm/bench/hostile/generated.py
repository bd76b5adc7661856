"""Hostile requests of hypothesis: valid fields mixed with any JSON."""

import json
from typing import Any

from unimm.bench.hostile.images import data_uri
from unimm.bench.hostile.posts import CHAT, DRAW, FIELDS, FOREIGN, SMALL, SPECIAL, TEXTS
from unimm.bench.hostile.wire import Hostile, http


def generated(count: int, seed: int, key: str) -> list[Hostile]:
    """Requests of hypothesis: valid fields mixed with any JSON. The same seed gives the same ones.

    Raises:
        ModuleNotFoundError: hypothesis is not installed.
    """
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    found: list[Hostile] = []
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]  # it is no test

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=slow)
    @given(_any_post())
    def keep(post: tuple[str, dict[str, Any]]) -> None:
        path, body = post
        found.append(Hostile("generated", ((0.0, http("POST", path, json.dumps(body).encode(), key=key)),)))

    keep()
    return found[:count]


def _any_post() -> Any:
    """A strategy of (path, body)."""
    from hypothesis import strategies as st

    text = st.text(st.characters(codec=None), max_size=60) | st.sampled_from((*SPECIAL, "a red circle", *TEXTS[:20]))
    number = st.integers(-(2**70), 2**70) | st.integers(-2, 20) | st.floats()
    leaf = (
        st.none()
        | st.booleans()
        | number
        | text
        | st.sampled_from((SMALL, "auto", "64x64", "text", "image", "webp", "b64_json"))
    )
    anything = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
    )
    url = text | st.sampled_from((SMALL, SMALL[:-9])) | st.binary(max_size=60).map(data_uri)
    part = st.fixed_dictionaries({"type": st.just("text"), "text": text}) | st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": url}) | url}
    )
    content = text | st.lists(part, max_size=4) | anything
    roles = st.sampled_from(("user", "assistant", "system", "developer")) | text
    messages = st.lists(st.fixed_dictionaries({"role": roles, "content": content}), min_size=1, max_size=4) | anything
    known = {path: dict.fromkeys(names, anything | number) for path, names in FIELDS.items()}
    for given in ("messages", "prompt", "max_tokens"):
        known[CHAT].pop(given, None)
        known[DRAW].pop(given, None)
    more = st.dictionaries(text | st.sampled_from(FOREIGN), anything, max_size=2)
    chat = st.fixed_dictionaries({"messages": messages, "max_tokens": st.integers(1, 5)}, optional=known[CHAT])
    draw = st.fixed_dictionaries({"prompt": text}, optional=known[DRAW])
    few = st.tuples(st.just(CHAT), chat) | st.tuples(st.just(DRAW), draw)
    return st.tuples(few, st.just({}) | st.just({}) | more).map(lambda both: (both[0][0], {**both[0][1], **both[1]}))
