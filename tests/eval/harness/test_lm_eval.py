"""The plug-in in lm-evaluation-harness itself; skipped where that is not installed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from unimm.eval import evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'unimm[lm-eval]'")


def requests(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=one) for one in arguments]


def test_texts_are_scored_and_written(tiny_folder: Path) -> None:
    from unimm.eval.harness.lm_eval import UnimmLM

    model = UnimmLM(str(tiny_folder), dtype="float32")
    pairs = [("A small red", " circle"), ("A small ", "red circle"), ("", "A small red circle.")]
    scored = model.loglikelihood(requests(*pairs))
    assert all(logprob < 0 and isinstance(is_greedy, bool) for logprob, is_greedy in scored)
    whole = model.loglikelihood_rolling(requests(("A small red circle.",)))
    assert whole[0] == pytest.approx(scored[2][0], abs=1e-4)
    before = model.loglikelihood(requests(("", "A small red")))[0][0]
    both = model.loglikelihood(requests(("", "A small red circle")))[0][0]
    assert before + scored[0][0] == pytest.approx(both, abs=1e-3)
    texts = model.generate_until(requests(("A small", {"until": ["\n"], "max_gen_toks": 5}), ("The", {"max_gen_toks": 3})))
    assert all(isinstance(text, str) and "\n" not in text for text in texts[:1])
    with pytest.raises(ValueError, match=r"asks for 300 tokens, and the model has 256 positions .* max_gen_toks=128"):
        model.generate_until(requests(("A small", {"max_gen_toks": 300})))
    assert UnimmLM(str(tiny_folder), chat=True).generate_until(requests(("Hello?", {"max_gen_toks": 3})))


def test_it_is_a_model_of_the_harness(tiny_folder: Path, tmp_path: Path) -> None:
    """By its own evaluation on a local task, whose bits a byte are those of our own task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from unimm.eval.harness.lm_eval import UnimmLM
    from unimm.eval.tasks.perplexity import Perplexity

    lines = ["A small red circle and a large blue square.", "There are three green triangles; one is left of the cross."] * 3
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(f'{{"text": "{line} {number}"}}\n' for number, line in enumerate(lines)))
    metrics = "".join(f"  - metric: {name}\n" for name in ("bits_per_byte", "byte_perplexity"))
    (tmp_path / "tiny.yaml").write_text(
        f"task: unimm_tiny\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\ntest_split: test\n"
        f'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{{{text}}}}"\nmetric_list:\n{metrics}'
    )
    model = UnimmLM(str(tiny_folder), dtype="float32", max_length=32)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["unimm_tiny"], task_manager=manager, bootstrap_iters=0)
    assert results is not None
    own = evaluate(model.engine, [Perplexity(str(data), max_length=32)], progress=False)["perplexity"]
    assert own.score == pytest.approx(results["results"]["unimm_tiny"]["bits_per_byte,none"], abs=1e-3)
    assert own.measures["byte_perplexity"] == pytest.approx(results["results"]["unimm_tiny"]["byte_perplexity,none"], abs=1e-3)
