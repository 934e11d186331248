from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss as OpenClipSigLipLoss

import pyssl_fast
from pyssl_fast.functional import siglip
from pyssl_fast.kernels.reference import similarity as twin
from tests.functional.similarity.peers import assert_like_peer, classes, rows


def eager(image, text, scale, bias, image_ids=None, text_ids=None, weight=None):
    """[M] by the formula, positives of a row weighted 1/k."""
    t = scale * image @ text.T + bias
    image_ids = torch.arange(len(image)) if image_ids is None else image_ids
    text_ids = torch.arange(len(text)) if text_ids is None else text_ids
    positive = (image_ids[:, None] == text_ids).to(t.dtype)
    each = positive / positive.sum(1, keepdim=True).clamp_min(1) * F.softplus(-t) + (1 - positive) * F.softplus(t)
    return each.sum(1) if weight is None else each.sum(1) * weight


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -3.0), (0.5, 2.0)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 20), (70, 65)])
def test_value_and_gradients_are_open_clips(shape: tuple[int, int], scale: float, bias: float) -> None:
    image, text = F.normalize(rows(*shape)), F.normalize(rows(*shape, seed=1))
    peer = OpenClipSigLipLoss()
    assert_like_peer(siglip, peer, (image, text, torch.tensor(scale), torch.tensor(bias)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    image, text = F.normalize(rows(33, 20)), F.normalize(rows(33, 20, 1))
    assert_like_peer(
        lambda q, k: siglip(q, k, 10.0, -5.0), lambda q, k: eager(q, k, 10.0, -5.0).mean(), (image, text), dtype
    )


def test_groups_weigh_their_positives_by_their_number() -> None:
    image, text, scale, bias = rows(9, 6), rows(14, 6, 1), torch.tensor(3.0), torch.tensor(-1.0)
    a, b = classes(9, 4), classes(14, 5, 1)
    assert_like_peer(lambda *x: siglip(*x, ids=(a, b)), lambda *x: eager(*x, a, b).mean(), (image, text, scale, bias))
    assert_like_peer(
        lambda *x: siglip(*x, ids=(a, b), reduction="none") ** 2,
        lambda *x: eager(*x, a, b) ** 2,
        (image, text, scale, bias),
    )


def test_equal_groups_of_one_are_the_plain_loss() -> None:
    image, text = rows(7, 5), rows(7, 5, 1)
    order = torch.randperm(7)
    torch.testing.assert_close(siglip(image, text, 2.0, -1.0, ids=order), siglip(image, text, 2.0, -1.0))
    swapped = siglip(image, text[order], 2.0, -1.0, ids=(torch.arange(7), order))
    torch.testing.assert_close(swapped, siglip(image, text, 2.0, -1.0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_reductions(reduction: str) -> None:
    image, text, weight = rows(8, 5), rows(8, 5, 1), torch.rand(8)

    def peer(*x):
        loss = eager(*x, weight=weight.to(x[0].dtype))
        return loss if reduction == "none" else loss.sum() / (weight.double().sum() if reduction == "mean" else 1)

    inputs = (image, text, torch.tensor(2.0), torch.tensor(0.1))
    assert_like_peer(lambda *x: siglip(*x, weight=weight, reduction=reduction), peer, inputs)


@pytest.mark.parametrize("needed", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_gradients_asked_for(needed: tuple[int, ...], reduction: str) -> None:
    full = [x.requires_grad_() for x in (rows(8, 5), rows(8, 5, 1), torch.tensor([2.0]), torch.tensor(0.1))]
    want = torch.autograd.grad(siglip(*full, reduction=reduction).sum(), full)
    some = [x.detach().requires_grad_(bool(need)) for x, need in zip(full, needed, strict=True)]
    loss = siglip(*some, reduction=reduction).sum()
    assert loss.requires_grad == any(needed)
    if any(needed):
        loss.backward()
    for x, need, gradient in zip(some, needed, want, strict=True):
        assert (x.grad is not None) == bool(need)
        if need:
            torch.testing.assert_close(x.grad, gradient)


def test_no_gradient_work_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = twin.sigmoid_contrast
    monkeypatch.setattr(twin, "sigmoid_contrast", lambda *a: (asked.append(a[8:11]), original(*a))[1])
    image, text = rows(8, 5).requires_grad_(), rows(8, 5, 1)
    with pyssl_fast.use_backend("reference"):
        siglip(image, text, 1.0, 0.0)
        with torch.no_grad():
            siglip(image, text, 1.0, 0.0)
    assert asked == [(True, True, False), (False, False, False)]


@pytest.mark.parametrize(("scale", "bias"), [(0.01, -10.0), (100.0, 0.0)])
def test_float16_gradients_neither_underflow_nor_overflow(scale: float, bias: float) -> None:
    """With all of the mean's 1/M in it the first gradient is subnormal, with none of it the second is infinite."""
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 2000, 4, generator=generator) + 2, dim=2).half()
    wide = image.double().requires_grad_()
    image.requires_grad_()
    (siglip(image, text, scale, bias) * 2.0**9).backward()  # by a loss scaler
    (eager(wide, text.double(), scale, bias).mean() * 2.0**9).backward()
    assert (image.grad.double() - wide.grad).abs().max() < 4e-3 * wide.grad.abs().max()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**31), st.floats(0.1, 20), st.floats(-10, 10))
def test_images_and_texts_may_change_places(samples: int, dim: int, seed: int, scale: float, bias: float) -> None:
    image, text = rows(samples, dim, seed), rows(samples, dim, seed + 1)
    a, b = siglip(image, text, scale, bias), siglip(text, image, scale, bias)
    assert a >= 0
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z, 1.0), {}, TypeError, r"image_features must be a Tensor \[N, D\]; got list"),
    "columns": ((Z, Z[:, :2], 1.0), {}, ValueError, "text_features must have rows of image_features's length 3"),
    "rows": ((Z, Z[:2], 1.0), {}, ValueError, "text_features must have 4 rows, like image_features; got 2"),
    "dtypes": ((Z, Z.double(), 1.0), {}, TypeError, "text_features must have image_features's dtype torch.float32"),
    "empty": ((Z[:0], Z[:0], 1.0), {}, ValueError, "image_features must not be empty"),
    "scale text": ((Z, Z, "10"), {}, TypeError, "logit_scale must be a number or a Tensor; got str"),
    "scale inf": ((Z, Z, float("inf")), {}, ValueError, "logit_scale must be finite"),
    "scale NaN": ((Z, Z, torch.tensor(float("nan"))), {}, ValueError, "logit_scale must be finite"),
    "biases": ((Z, Z, 1.0, torch.ones(2)), {}, ValueError, "logit_bias as a Tensor must hold one floating-point"),
    "ids length": ((Z, Z, 1.0), {"ids": torch.arange(3)}, ValueError, r"ids must have shape \[4\]; got \[3\]"),
    "ids float": ((Z, Z, 1.0), {"ids": torch.rand(4)}, TypeError, "ids must be integers; got torch.float32"),
    "ids list": ((Z, Z, 1.0), {"ids": [0, 1, 2, 3]}, TypeError, "ids must be an integer Tensor"),
    "ids half given": ((Z, Z, 1.0), {"ids": (torch.arange(4), None)}, TypeError, "ids must be an integer Tensor"),
    "one of ids": ((Z, Z, 1.0), {"ids": (torch.arange(4),)}, ValueError, "ids must be a Tensor or two"),
    "weight": ((Z, Z, 1.0), {"weight": torch.ones(3)}, ValueError, r"weight must have shape \[4\]; got \[3\]"),
    "reduction": ((Z, Z, 1.0), {"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum; got 'max'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        siglip(*arguments, **keywords)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("learned", [True, False])
def test_weights_are_constants(reduction: str, learned: bool) -> None:
    image, text, weight = rows(8, 5).requires_grad_(learned), rows(8, 5, 1), torch.rand(8)
    want = siglip(image, text, 2.0, weight=weight, reduction=reduction).sum()
    weight = weight.clone().requires_grad_()
    loss = siglip(image, text, 2.0, weight=weight, reduction=reduction).sum()
    torch.testing.assert_close(loss, want)
    assert loss.requires_grad == learned
    if learned:
        gradient, none = torch.autograd.grad(loss, [image, weight], allow_unused=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(want, image)[0])
        assert none is None
