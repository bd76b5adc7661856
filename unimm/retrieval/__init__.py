"""Retrieval: images and texts found by each other. Indexes of embeddings on disk, search in them, re-ranking by the unified
model, and two towers of other libraries.

    from unimm.retrieval import Index, load_towers, recall_at

Public names; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.retrieval.index import Hit, Index
    from unimm.retrieval.indexing import build_index
    from unimm.retrieval.recall import recall_at
    from unimm.retrieval.rerank import Reranker
    from unimm.retrieval.towers import TwoTowers, load_towers

__all__ = ["Hit", "Index", "Reranker", "TwoTowers", "build_index", "load_towers", "recall_at"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Hit", "Index"), "index"),
        "build_index": "indexing",
        "recall_at": "recall",
        "Reranker": "rerank",
        **dict.fromkeys(("TwoTowers", "load_towers"), "towers"),
    },
)
