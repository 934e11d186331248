"""pyssl_fast.functional.clip_loss as its users call it; what it shares with others is in test_softmax.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss as OpenClipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from pyssl_fast.functional import clip_loss


def pair(samples: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    text = image + torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    return tuple(F.normalize(x, dim=1).requires_grad_() for x in (image, text))


@pytest.mark.parametrize("logit_scale", [1.0, 1 / 0.07, 100.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 20)])
def test_value_and_gradients_are_open_clips(shape: tuple[int, int], logit_scale: float) -> None:
    inputs = [*pair(*shape), torch.tensor(logit_scale, dtype=torch.float64, requires_grad=True)]
    ours, theirs = clip_loss(*inputs), OpenClipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_bias_changes_nothing_but_stays_in_the_graph() -> None:
    image, text = pair(6, 4)
    bias = torch.tensor([-10.0], requires_grad=True)
    loss, metrics = clip_loss(image, text, 10.0, bias, return_metrics=True)
    plain, without = clip_loss(image, text, 10.0, return_metrics=True)
    assert torch.equal(loss, plain) and loss.shape == ()
    torch.testing.assert_close(metrics.lse, without.lse - 10)
    assert metrics.positive == without.positive
    loss.backward()
    assert bias.grad is not None and bias.grad == 0
    assert torch.equal(clip_loss(image, text, 10.0, -3.0), plain)


class Operators(TorchDispatchMode):
    """The names and arguments of our operators as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pyssl_fast":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("locked", [0, 1])
def test_a_locked_tower_spares_its_half_of_backward(locked: int) -> None:
    free = pair(6, 4)
    want = torch.autograd.grad(clip_loss(*free, 10.0), free)
    inputs = [x.detach().requires_grad_(number != locked) for number, x in enumerate(free)]
    with Operators() as seen:
        clip_loss(*inputs, 10.0).backward()
    assert [name for name, _ in seen.calls] == ["contrast", "contrast_backward"]
    needs_q, needs_k = seen.calls[1][1][-3:-1]
    assert (needs_q, needs_k) == (locked == 1, locked == 0)
    torch.testing.assert_close(inputs[1 - locked].grad, want[1 - locked])
    assert inputs[locked].grad is None


X = torch.randn(4, 3)
BAD = {
    "image": ((X[0], X, 1.0), ValueError, r"image_features must have shape \[N, D\]; got \[3\]"),
    "text": ((X, X[:3], 1.0), ValueError, r"text_features must have image_features's shape \[4, 3\]; got \[3, 3\]"),
    "scale": ((X, X, math.nan), ValueError, "logit_scale must be finite, 1e30 in size at most; got nan"),
    "scale text": ((X, X, "big"), TypeError, "logit_scale must be a number or a Tensor; got str"),
    "scales": ((X, X, torch.ones(2)), ValueError, "logit_scale as a Tensor must hold one floating-point number"),
    "scale integer": ((X, X, torch.tensor(3)), ValueError, "logit_scale as a Tensor must hold one floating-point"),
    "bias": ((X, X, 1.0, math.inf), ValueError, "logit_bias must be finite, 1e30 in size at most; got inf"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, error, message = case
    with pytest.raises(error, match=message):
        clip_loss(*arguments)
