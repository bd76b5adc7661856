"""The chunked loss: what the plain one gives, in value, hits and gradients, however it is cut; and in little memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from unimm.models.ports.vocabulary import CodesPort, Favoured, TextPort, linear_cross_entropy, linear_log_probs

NUM, WIDTH, VOCABULARY = 37, 8, 50


def plain(hidden_nD, weight_VD, bias_V, targets_n, weights_n):
    logits_nV = F.linear(hidden_nD, weight_VD, bias_V).float()
    losses_n = F.cross_entropy(logits_nV, targets_n, reduction="none")
    return (losses_n * weights_n).sum(), ((logits_nV.argmax(-1) == targets_n) * weights_n).sum()


def make(num: int = NUM, bias: bool = True, dtype: torch.dtype = torch.float32):
    random = torch.Generator().manual_seed(num)
    tensors = [
        torch.randn(shape, generator=random, dtype=dtype) for shape in ((num, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    ]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    targets_n = torch.randint(VOCABULARY, (num,), generator=random)
    return [*tensors[:2], tensors[2] if bias else None, targets_n, torch.rand(num, generator=random)]


@pytest.mark.parametrize("chunk_logits", [1, VOCABULARY * 5, VOCABULARY * NUM, 10**9])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_plain_loss_however_it_is_cut(bias: bool, chunk_logits: int) -> None:
    given = make(bias=bias)
    learned = [tensor for tensor in given[:3] if tensor is not None]
    loss, correct = linear_cross_entropy(*given, chunk_logits=chunk_logits)
    expected, expected_correct = plain(*given)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert correct == expected_correct > 0
    grads, expected_grads = torch.autograd.grad(loss * 0.3, learned), torch.autograd.grad(expected * 0.3, learned)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_logits", [VOCABULARY * 5, 10**9])
def test_what_is_favoured_is_part_of_the_logits(chunk_logits: int) -> None:
    hidden_nD, weight_VD, bias_V, targets_n, weights_n = make()
    favoured = Favoured(torch.arange(NUM) % VOCABULARY, torch.where(torch.arange(NUM) % 3 == 0, 0.0, 4.0))
    logits_nV = F.linear(hidden_nD, weight_VD, bias_V)
    for place, (chosen, bias) in enumerate(zip(*favoured, strict=True)):
        logits_nV = logits_nV.index_put((torch.tensor(place), chosen), bias, accumulate=True)
    told_n = logits_nV.log_softmax(-1).gather(1, targets_n[:, None])[:, 0]
    learned = [hidden_nD, weight_VD, bias_V]
    loss, correct = linear_cross_entropy(*learned, targets_n, weights_n, favoured, chunk_logits)
    found_n = linear_log_probs(*learned, targets_n, favoured, chunk_logits)
    torch.testing.assert_close(loss, -(told_n * weights_n).sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_n, told_n, rtol=1e-5, atol=1e-5)
    assert correct == ((logits_nV.argmax(-1) == targets_n) * weights_n).sum()
    expected = torch.autograd.grad((told_n * weights_n).sum(), learned)
    for found in (torch.autograd.grad(-loss, learned), torch.autograd.grad((found_n * weights_n).sum(), learned)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_targets_give_zeros_and_zero_gradients() -> None:
    given = make(0)
    loss, correct = linear_cross_entropy(*given)
    assert (loss.item(), correct.item()) == (0.0, 0.0)
    for grad, tensor in zip(torch.autograd.grad(loss, given[:3]), given[:3], strict=True):
        assert grad.shape == tensor.shape and not grad.any()


@pytest.mark.parametrize("learned", [0, 1, 2])
def test_only_what_learns_gets_a_gradient(learned: int) -> None:
    given = make()
    for number in range(3):
        given[number].requires_grad_(number == learned)
    linear_cross_entropy(*given).loss.backward()
    assert [tensor.grad is not None for tensor in given[:3]] == [number == learned for number in range(3)]
    with torch.no_grad():
        assert not linear_cross_entropy(*given).loss.requires_grad


def test_a_second_backward_is_refused() -> None:
    loss = linear_cross_entropy(*make()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


def test_autocast_casts_the_products_alone() -> None:
    """As the plain loss under autocast: bf16 products, float32 losses, gradients in the dtype of what they are of."""
    given = make()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(*given, chunk_logits=VOCABULARY * 8)
        expected, _ = plain(*given)
    assert loss.dtype == torch.float32 and loss.item() != pytest.approx(plain(*given)[0].item(), rel=1e-6)
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)
    grads, expected_grads = torch.autograd.grad(loss, given[:3]), torch.autograd.grad(expected, given[:3])
    for grad, expected_grad, tensor in zip(grads, expected_grads, given[:3], strict=True):
        assert grad.dtype == tensor.dtype
        torch.testing.assert_close(grad, expected_grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("port", [TextPort(VOCABULARY, WIDTH), CodesPort(VOCABULARY, 4, WIDTH)], ids=["text", "codes"])
def test_a_port_s_loss_is_that_of_its_logits(port: TextPort | CodesPort) -> None:
    hidden_nD, _, _, targets_n, weights_n = make()
    tally = port.loss(hidden_nD, targets_n, weights_n)
    losses_n = F.cross_entropy(port.logits(hidden_nD), targets_n, reduction="none")
    torch.testing.assert_close(tally.loss, (losses_n * weights_n).sum())
    assert tally.count == weights_n.sum()


MEASURE = """
import resource, sys, torch
sys.path.insert(0, "tests/models")
from test_linear_cross_entropy import plain
from unimm.models.ports.vocabulary import linear_cross_entropy
hidden = torch.randn(2048, 64, requires_grad=True)
weight = torch.randn(102_400, 64, requires_grad=True)
targets, weights = torch.randint(102_400, (2048,)), torch.ones(2048)
loss = linear_cross_entropy if sys.argv[1] == "chunked" else plain
loss(hidden[:2], weight, None, targets[:2], weights[:2])[0].backward()  # threads and kernels take what they need once
hidden.grad = weight.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss(hidden, weight, None, targets, weights)[0].backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_at_a_large_vocabulary_is_at_most_a_quarter() -> None:
    """Forward and backward of 2,048 targets among 102,400 ids, gradients included: what each adds to its process."""
    peaks = {}
    for way in ("chunked", "plain"):
        result = subprocess.run([sys.executable, "-c", MEASURE, way], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        peaks[way] = int(result.stdout)
    print({way: f"{peak / 1024:.0f} MiB" for way, peak in peaks.items()})
    assert peaks["chunked"] <= peaks["plain"] / 4
