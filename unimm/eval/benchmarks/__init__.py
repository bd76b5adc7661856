"""Public benchmarks of drawings: their prompts in, the files their scorers take out, and their scorers' results into one table.

    from unimm.eval.benchmarks import BENCHMARKS, Export, score

`benchmark` has what all of them share, `table` lists them, `export` draws, `scores` reads what the scorers write.
"""

from typing import TYPE_CHECKING

from unimm.runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from unimm.eval.benchmarks.benchmark import Benchmark, Prompt
    from unimm.eval.benchmarks.export import Export, ExportSettings
    from unimm.eval.benchmarks.scores import score
    from unimm.eval.benchmarks.table import BENCHMARKS

__all__ = ["BENCHMARKS", "Benchmark", "Export", "ExportSettings", "Prompt", "score"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Benchmark", "Prompt"), "benchmark"),
        **dict.fromkeys(("Export", "ExportSettings"), "export"),
        "score": "scores",
        "BENCHMARKS": "table",
    },
)
