"""What the losses beyond plain softmax promise as operators: gradients, dtypes, compile, autocast, NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import pyssl_fast
from pyssl_fast.functional import (
    alignment,
    koleo,
    mean_shift,
    negative_cosine_similarity,
    nnclr,
    siglip,
    spectral_contrastive,
    sup_con,
    triplet_margin,
    triplet_margin_in_batch,
    uniformity,
)
from tests.functional.similarity.peers import rows

SAMPLES, DIM = 24, 6
BANK = rows(50, DIM, 9)


@dataclass(frozen=True)
class Loss:
    """call: of `inputs` matrices [N, D] -> []. fused: it has no second derivative. compiled: whether that is tried."""

    call: Callable[..., Tensor]
    inputs: int
    fused: bool = True
    compiled: bool = True


def _sup_con(**options):
    return lambda a, b: sup_con(torch.stack((a, b), 1), temperature=0.5, **options)


def _labels(z: Tensor) -> Tensor:
    return torch.arange(z.shape[0]) // 3


LOSSES = {
    "siglip": Loss(lambda a, b: siglip(a, b, 2.0, -1.0), 2),
    "siglip rows": Loss(lambda a, b: siglip(a, b, 2.0, -1.0, reduction="none").square().sum(), 2, compiled=False),
    "siglip groups": Loss(lambda a, b: siglip(a, b, 2.0, -1.0, ids=_labels(a)), 2),
    "sup_con": Loss(lambda a, b: _sup_con(labels=_labels(a))(a, b), 2, compiled=False),
    "sup_con in": Loss(
        lambda a, b: _sup_con(labels=_labels(a), variant="in", contrast_mode="one")(a, b), 2, compiled=False
    ),
    "sup_con mask": Loss(lambda a, b: _sup_con(mask=_labels(a)[:, None] <= _labels(a))(a, b), 2),
    "sup_con smooth": Loss(
        lambda a, b: _sup_con(label_smoothing=0.1, without_positive="skip")(a, b), 2, compiled=False
    ),
    "sup_con debiased": Loss(lambda a, b: _sup_con(labels=_labels(a), debias=0.01, normalize=True)(a, b), 2),
    "nnclr": Loss(lambda a, b: nnclr(a, b, 0.5, symmetric=True), 2),
    "mean_shift": Loss(lambda a: mean_shift(a, a, BANK.to(a.dtype), 3), 1, fused=False),
    "spectral pairs": Loss(lambda a, b: spectral_contrastive(a.repeat(1, 9), b.repeat(1, 9), 2.0), 2, fused=False),
    "spectral grams": Loss(lambda a, b: spectral_contrastive(a, b, 2.0), 2, fused=False),
    "triplet": Loss(lambda a, b: triplet_margin(a, b, b.flip(0), 0.3, swap=True), 2, fused=False),
    "triplets": Loss(lambda a: triplet_margin_in_batch(a, _labels(a), 0.3), 1),
    "semi-hard": Loss(lambda a: triplet_margin_in_batch(a, _labels(a), 0.3, mining="semi-hard", distance="cosine"), 1),
    "hard": Loss(
        lambda a: triplet_margin_in_batch(a, _labels(a), 0.3, mining="hard", reduction="mean"), 1, fused=False
    ),
    "cosine": Loss(negative_cosine_similarity, 2, fused=False),
    "alignment": Loss(lambda a, b: alignment(a, b, 1.5), 2, fused=False),
    "uniformity": Loss(uniformity, 1),
    "koleo": Loss(lambda a: koleo(a, topk=2), 1, fused=False),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def matrices(loss: Loss, samples: int = SAMPLES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [rows(samples, DIM, seed).to(dtype).requires_grad_() for seed in range(loss.inputs)]


@every_loss
def test_gradients_are_the_differences(loss: Loss) -> None:
    assert torch.autograd.gradcheck(loss.call, matrices(loss, 9, torch.float64))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(loss: Loss, dtype: torch.dtype) -> None:
    inputs = matrices(loss, dtype=dtype)
    value = loss.call(*inputs)
    value.backward()
    assert value.shape == () and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for x in inputs:
        assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.compiled])
def test_compiles_once_for_any_batch(name: str) -> None:
    loss = LOSSES[name]
    compiled = torch.compile(loss.call, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples, stance in ((SAMPLES, "default"), (15, "fail_on_recompile")):
        inputs = matrices(loss, samples)
        with torch.compiler.set_stance(stance):
            ours = compiled(*inputs)
        eager = loss.call(*inputs)
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-7)
        for mine, theirs in zip(
            torch.autograd.grad(ours * 3, inputs), torch.autograd.grad(eager * 3, inputs), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@every_loss
def test_autocast_gives_float32_and_gradients_of_the_inputs_dtype(loss: Loss, backend) -> None:
    inputs = matrices(loss)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss.call(*inputs)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss.call(*inputs), rtol=0.05, atol=0.05)
    assert all(x.grad.dtype == torch.float32 and (x.grad != 0).any() for x in inputs)


@every_loss
def test_not_a_number_comes_out(loss: Loss, backend) -> None:
    for bad in (torch.nan, torch.inf):
        inputs = matrices(loss)
        with torch.no_grad():
            inputs[-1][4, 2] = bad
            value = loss.call(*inputs)
        assert not value.isfinite() and (value.isnan() or bad == torch.inf)


@every_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(loss: Loss, use_reentrant: bool) -> None:
    inputs = matrices(loss)
    plain = torch.autograd.grad(loss.call(*inputs), inputs)
    checkpoint(loss.call, *inputs, use_reentrant=use_reentrant).backward()
    for x, want in zip(inputs, plain, strict=True):
        assert torch.equal(x.grad, want)


@every_loss
def test_any_layout(loss: Loss, backend) -> None:
    inputs = [x.detach() for x in matrices(loss)]
    value = loss.call(*inputs)
    for strided in (
        [x.T.contiguous().T for x in inputs],
        [x.repeat_interleave(2, 1)[:, ::2] for x in inputs],
        [x.flip(0).contiguous().flip(0) for x in inputs],
    ):
        torch.testing.assert_close(loss.call(*strided), value, rtol=1e-6, atol=1e-6)


@every_loss
def test_no_gradient_asked_for_no_graph(loss: Loss) -> None:
    assert not loss.call(*(x.detach() for x in matrices(loss))).requires_grad


@every_loss
def test_second_derivatives_are_right_or_an_error(loss: Loss) -> None:
    inputs = matrices(loss, 9, torch.float64)
    if not loss.fused:
        assert torch.autograd.gradgradcheck(loss.call, inputs)
        return
    gradient = torch.autograd.grad(loss.call(*inputs), inputs[0], create_graph=True)[0]
    if gradient.requires_grad:  # siglip's gradient comes with the value: a constant for autograd
        with pytest.raises(RuntimeError, match="second derivatives are not supported"):
            gradient.square().sum().backward()
