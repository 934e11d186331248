"""The error contract that every kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

# What rounding in float64 may leave of an exact 0 (the truth's and ours), beside logits and gradients of some hundreds.
TRUTH_ROUNDING = 1e-12
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_within_contract(ours: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype, what: str) -> None:
    """max|ours − truth| ≤ max|eager − truth| + tol·max|truth|, and not-a-number exactly where the truth has none.

    Args:
        ours: any shape, from the kernel under test.
        truth: like ours, from the float64 twin.
        eager: like ours, from the twin in `dtype`.
        dtype: the input's, which sets tol.
        what: the tensor's name, for the message.
    """
    assert ours.shape == truth.shape == eager.shape, f"{what}: shapes {ours.shape}, {truth.shape}, {eager.shape}"
    ours, truth, eager = (x.detach().to("cpu", torch.float64).reshape(-1) for x in (ours, truth, eager))
    if truth.numel() == 0:
        return
    finite = truth.isfinite()
    wrong = (ours.isfinite() != finite) | (ours.isnan() != truth.isnan()) | (truth.isinf() & (ours != truth))
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise AssertionError(f"{what}[{index}]: ours {ours[index]:.9g}, truth {truth[index]:.9g}")
    if not finite.any():
        return

    def worst(x: Tensor) -> Tensor:
        return torch.where(finite, (x - truth).abs(), 0.0)

    # An eager that overflowed where the truth is finite has no error to allow.
    theirs = torch.where(eager.isfinite(), worst(eager), 0.0)
    allowed = float(theirs.max()) + TOLERANCE[dtype] * float(truth[finite].abs().max()) + TRUTH_ROUNDING
    error = worst(ours)
    index = int(error.argmax())
    if float(error[index]) > allowed:
        raise AssertionError(
            f"{what}[{index}]: ours {ours[index]:.9g}, truth {truth[index]:.9g}, eager {eager[index]:.9g}: error"
            f" {error[index]:.3g}, allowed {allowed:.3g}, excess {float(error[index]) - allowed:.3g}"
        )
