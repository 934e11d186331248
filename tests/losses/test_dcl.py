from __future__ import annotations

import warnings

import pytest
import torch
from lightly.loss import DCLLoss as LightlyDCLLoss
from lightly.loss import DCLWLoss as LightlyDCLWLoss

from pyssl_fast.functional import dcl
from pyssl_fast.losses import DCLLoss, DCLWLoss


def unlike(out0: torch.Tensor, out1: torch.Tensor) -> torch.Tensor:
    """Differs between the orders, and has a gradient."""
    return (out0[:, 0] + (out0 - out1).square().sum(1)).exp()


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        (DCLLoss, LightlyDCLLoss, ()),
        (DCLLoss, LightlyDCLLoss, (0.3, unlike, False)),
        (DCLWLoss, LightlyDCLWLoss, ()),
        (DCLWLoss, LightlyDCLWLoss, (0.2, 0.7, False)),
    ],
)
def test_takes_the_place_of_lightlys(ours, theirs, arguments) -> None:
    out = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly copies a tensor by torch.tensor
        want = theirs(*arguments)(*out)
    found = ours(*arguments)(out0=out[0], out1=out[1])
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found, out), torch.autograd.grad(want, out))


def test_passes_its_settings_on() -> None:
    out, ids, weight = torch.randn(2, 5, 4), torch.tensor([0, 1, 0, 2, 3]), torch.rand(5)
    found, metrics = DCLLoss(reduction="sum", debias=0.1, return_metrics=True)(*out, ids=ids, weight=weight)
    want = dcl(*out, ids=ids, weight=weight, reduction="sum", debias=0.1)
    assert torch.equal(found, want) and metrics.lse.shape == (2, 5)
    assert DCLWLoss(label_smoothing=0.1, reduction="none")(*out, ids=ids).shape == (2, 5)
    assert repr(DCLWLoss()) == "DCLWLoss(temperature=0.1, reduction='mean', sigma=0.5)"


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (DCLLoss, {"temperature": 0}, ValueError, "temperature must be 1e-8"),
        (DCLLoss, {"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        (DCLWLoss, {"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        (DCLWLoss, {"sigma": 0}, ValueError, "sigma must be .* got 0"),
    ],
)
def test_refuses(loss, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        loss(**arguments)


def test_weights_of_long_and_short_rows_in_half_precision() -> None:
    out = torch.randn(2, 5, 4)
    out[0, 1] = 0
    for scale in (1e-4, 1e4):
        rows = (scale * out).half()
        assert DCLLoss(weight_fn=unlike)(*rows).isfinite()


def test_weights_may_be_a_column_and_nothing_else() -> None:
    out = torch.randn(2, 5, 4)
    column = DCLLoss(weight_fn=lambda a, b: unlike(a, b)[:, None])(*out)
    torch.testing.assert_close(column, DCLLoss(weight_fn=unlike)(*out))
    for wrong, error, message in (
        (torch.ones(4), ValueError, r"weight_fn's result must have shape \[5\]; got \[4\]"),
        (torch.ones(5).long(), TypeError, "weight_fn's result must be floating-point"),
        (1.0, TypeError, r"weight_fn must return a Tensor \[5\]; got float"),
    ):
        with pytest.raises(error, match=message):
            DCLLoss(weight_fn=lambda a, b, wrong=wrong: wrong)(*out)


def test_weights_of_two_dtypes_under_autocast() -> None:
    out0, out1 = torch.randn(5, 4), torch.randn(5, 4).bfloat16()
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        assert DCLLoss(weight_fn=lambda a, b: (seen.extend((a.dtype, b.dtype)), unlike(a, b))[1])(out0, out1).isfinite()
    assert set(seen) == {torch.bfloat16}
