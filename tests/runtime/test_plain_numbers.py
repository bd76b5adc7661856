"""Numbers of NumPy and PyTorch are as good as Python's, wherever the engine is given one; what is none is a sentence."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.runtime.number_checks import real_number, whole_number, whole_numbers

INTEGERS = [np.int64, np.uint32, np.int8, np.uint64, torch.tensor, np.array]
REALS = [np.float32, np.float16, torch.tensor, np.array, Fraction]


@pytest.mark.parametrize("hold", INTEGERS)
def test_integers_are_integers(hold: Any, tiny_engine: Engine) -> None:
    plain = tiny_engine.generate_codes("a", 2, seed=5, top_k=20)
    assert torch.equal(tiny_engine.generate_codes("a", hold(2), seed=hold(5), top_k=hold(20)), plain)
    image = np.zeros((16, 16, 3), np.uint8)
    words = {"max_new_tokens": 5, "seed": 3, "top_k": 9}
    told = tiny_engine.answer(image, "What?", temperature=1.0, **words)
    assert tiny_engine.answer(image, "What?", temperature=1.0, **{name: hold(value) for name, value in words.items()}) == told
    assert Limits(max_rows=hold(3), max_waiting=hold(0)) == Limits(max_rows=3, max_waiting=0)
    last = list(tiny_engine.stream_images("a", seed=hold(5), preview_every=hold(2)))[-1]
    assert torch.equal(last.codes, tiny_engine.generate_codes("a", seed=5))
    assert len(tiny_engine.generate_images(["a", "b"], hold(2), best_of=hold(2))[1]) == 2


@pytest.mark.parametrize("seeds", [[4, 9], (4, 9), np.array([4, 9]), torch.tensor([4, 9]), range(4, 10, 5), [np.int64(4), 9]])
def test_seeds_may_be_any_row_of_integers(seeds: Any, tiny_engine: Engine) -> None:
    assert torch.equal(tiny_engine.generate_codes(["a", "b"], seed=seeds), tiny_engine.generate_codes(["a", "b"], seed=[4, 9]))


@pytest.mark.parametrize("hold", REALS)
def test_reals_are_reals(hold: Any, tiny_engine: Engine) -> None:
    words = {"temperature": 0.5, "top_p": 0.75, "guidance_scale": 2.0, "min_p": 0.0}
    plain = tiny_engine.generate_codes("a", **words, guidance_interval=(0.0, 0.5))
    held = {name: hold(value) for name, value in words.items()}
    assert torch.equal(tiny_engine.generate_codes("a", **held, guidance_interval=[hold(0.0), hold(0.5)]), plain)


@pytest.mark.parametrize("value", [1.5, "3", None, True, np.bool_(True), torch.tensor([1, 2]), torch.tensor(True), np.ones(3)])
def test_what_is_no_whole_number_is_a_sentence(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed is a whole number, not .*\.$"):
        whole_number("seed", value)
    if getattr(value, "ndim", 0) == 0:
        with pytest.raises(ValueError, match=r"^seed is"):
            whole_numbers("seed", value, 3)


@pytest.mark.parametrize("value", ["0.7", None, 1j, True, [0.5], torch.ones(3), b"1", "x" * 10_000])
def test_what_is_no_number_is_a_short_sentence(value: Any, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"^top_p is a number, not .*\.$") as refused:
        real_number("top_p", value)
    assert len(str(refused.value)) < 120
    sequence = tiny_engine.template.draw("a", num_codes=4)
    for make in (lambda: Sampling(value), lambda: Request(sequence, guidance_scale=value)):
        with pytest.raises(ValueError, match="is a number"):
            make()
    with pytest.raises(ValueError, match="guidance_interval is"):
        Request(sequence, guidance_interval=value)


@pytest.mark.parametrize("wrong", [0, 1.5, "8", None])
def test_lengths_of_answers_that_are_none(wrong: Any, tiny_engine: Engine) -> None:
    for ask in (
        lambda: tiny_engine.chat([{"role": "user", "content": "a"}], max_new_tokens=wrong),
        lambda: tiny_engine.caption(np.zeros((16, 16, 3), np.uint8), max_new_tokens=wrong),
    ):
        with pytest.raises(ValueError, match="max_new_tokens is a whole number of at least 1"):
            ask()


def test_codes_may_be_held_in_any_integers(tiny_engine: Engine) -> None:
    codes = tiny_engine.generate_codes("a", seed=1)
    plain = [np.asarray(image) for image in tiny_engine.decode_codes(codes)]
    for held in (codes.numpy().astype(np.uint16), codes.tolist(), codes.int()):
        assert np.array_equal(plain, [np.asarray(image) for image in tiny_engine.decode_codes(held)])
    for wrong in (codes.float(), codes > 0):
        with pytest.raises(ValueError, match="Codes are whole numbers, not"):
            tiny_engine.decode_codes(wrong)
