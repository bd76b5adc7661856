"""The public benchmarks by name, in the order of papers' tables. One more is one more line."""

from unimm.eval.benchmarks.benchmark import Benchmark
from unimm.eval.benchmarks.coco import Coco
from unimm.eval.benchmarks.dpg import DPG
from unimm.eval.benchmarks.edits import GEdit, ImgEdit
from unimm.eval.benchmarks.geneval import GenEval
from unimm.eval.benchmarks.geneval2 import GenEval2
from unimm.eval.benchmarks.oneig import OneIG
from unimm.eval.benchmarks.t2i_compbench import T2ICompBench
from unimm.eval.benchmarks.wise import WISE

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (GenEval(), DPG(), WISE(), T2ICompBench(), Coco(), GenEval2(), OneIG(), ImgEdit(), GEdit())
}
