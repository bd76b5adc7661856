"""Scores: a value with interval, unit and direction; shares, means and statistics; read again as they were written."""

import json
import math
from statistics import fmean

import pytest

from unimm.eval import Example, Score, summarize
from unimm.eval.task import Result, wilson_interval


def example(number: int, value: float | None = None, category: str = "", **numbers: float) -> Example:
    return Example(str(number), "", "", "", number % 4 > 0, category=category, value=value, numbers=numbers)


def bits_a_byte(examples: list[Example]) -> float:
    return sum(one.numbers["bits"] for one in examples) / sum(one.numbers["bytes"] for one in examples)


def test_a_mean_has_the_normal_interval_of_its_unit() -> None:
    score = Score.mean([20.0, 22.0, 24.0, 30.0], "dB")
    reach = 1.959964 * math.sqrt(56 / 3) / 2  # the deviation of these is sqrt(56 / 3)
    assert (score.value, score.count, score.unit, score.higher_is_better) == (24.0, 4, "dB", True)
    assert score.interval == pytest.approx((24 - reach, 24 + reach))
    assert Score.mean([0.0, 1.0, 1.0], "share").interval == (pytest.approx(2 / 3 - 1.959964 / 3), 1.0), "a share ends at 1"
    assert Score.mean([0.5], "share").interval is None and Score.mean([math.inf, 1.0], "dB").interval is None
    for make in (lambda: Score.mean([], "dB"), lambda: Score.bootstrap([], len, "items")):
        with pytest.raises(ValueError, match="at least 1 item"):
            make()


def test_a_statistic_has_a_bootstrap_interval() -> None:
    examples = [example(number, bits=number % 7, bytes=4 + number % 3) for number in range(400)]
    score = Score.bootstrap(examples, bits_a_byte, "bits/byte", higher_is_better=False)
    assert score.value == pytest.approx(bits_a_byte(examples)) and not score.higher_is_better
    assert score == Score.bootstrap(examples, bits_a_byte, "bits/byte", higher_is_better=False), "the same resamples"
    mean = Score.bootstrap(examples, lambda some: fmean(one.numbers["bits"] for one in some), "bits")
    normal = Score.mean([one.numbers["bits"] for one in examples], "bits")
    assert mean.interval is not None and normal.interval is not None
    assert mean.interval == pytest.approx(normal.interval, rel=0.02)
    assert Score.bootstrap(examples, bits_a_byte, "bits/byte", num_resamples=0).interval is None


def test_a_result_is_of_shares_of_values_or_of_a_statistic() -> None:
    right = summarize("a", [example(number) for number in range(20)])
    assert right.total == Score(0.75, 20, wilson_interval(0.75, 20)) == Score.share(0.75, 20)
    soft = summarize("b", [example(number, number / 10, "even" if number % 2 == 0 else "odd") for number in range(10)])
    assert soft.score == pytest.approx(0.45) and soft.unit == "share"
    assert soft.details["even"].value == pytest.approx(0.4) and soft.details["odd"].count == 5
    examples = [example(number, bits=1.0 + number % 2, bytes=1.0, category="x") for number in range(10)]
    lower = summarize("c", examples, unit="bits/byte", higher_is_better=False, statistic=bits_a_byte)
    assert (lower.score, lower.unit, lower.higher_is_better) == (1.5, "bits/byte", False)
    assert lower.interval is not None and lower.details["x"] == Score(1.5, 10, None, "bits/byte", False)
    mean = summarize("d", examples, mean_of_categories=True, unit="bits", statistic=bits_a_byte)
    assert (mean.score, mean.interval) == (1.5, None)


def test_it_is_read_as_it_was_written_and_so_is_what_an_older_unimm_wrote() -> None:
    examples = [example(number, bits=1.0 + number % 2, bytes=1.0, category="x") for number in range(10)]
    others = {"psnr": Score(math.inf, 10, None, "dB")}
    result = summarize("c", examples, {"best_of": 4.0}, unit="bits", statistic=bits_a_byte, other_scores=others)
    plain = json.loads(json.dumps(result.plain()))
    assert plain["other_scores"]["psnr"]["score"] is None, "JSON has no infinity"
    again = Result.read("c", plain, examples)
    assert (again.total, again.details, again.measures) == (result.total, result.details, result.measures)
    assert math.isnan(again.other_scores["psnr"].value) and again.other_scores["psnr"].unit == "dB"
    old = {"score": 0.5, "interval": [0.2, 0.8], "count": 9, "details": {}, "measures": {}, "seconds": 1.0}
    assert Result.read("old", old, []).total == Score(0.5, 9, (0.2, 0.8), "share", True)
