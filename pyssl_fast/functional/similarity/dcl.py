"""Decoupled contrastive learning: NT-Xent without the positive in its denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast.functional.checks import check_number, check_weight
from pyssl_fast.functional.similarity.nt_xent import check_views, contrast_views
from pyssl_fast.functional.similarity.softmax import Result, check_options, dots


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    positive_weight: Tensor | None = None,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """The decoupled contrastive loss (Yeh et al. 2022, eq. 6): with cosine similarities s, for every row i

        loss_i = −w_i·s_ip / τ + log Σ_{j ≠ i, p} exp(s_ij / τ)

    over both views, p the other view of i. Operations and memory are `nt_xent`'s.

    Args:
        z0, z1: [N, D] embeddings of two views, N ≥ 2: float32, float16, bfloat16 or float64, not normalised.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        positive_weight: w, [N] or, one for each view, [2, N]; `dclw` sets it.
        ids: [N] integers; samples of equal ids are no negatives of each other. The loss of a row that is left without
            negatives is −∞.
        weight: [N] weight of every sample's whole loss; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean" over all 2N rows, "sum", or "none".
        label_smoothing: ε of 0 to 1: the logit of the positive gives way to the mean over the row's positive and
            negatives by so much.
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass.

    Returns:
        [] loss, or [2, N] with reduction="none"; float32 (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, by name.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    views = check_views(z0, z1)
    samples = z0.shape[0]
    if samples < 2:
        raise ValueError("z0 must hold two samples or more: without the positive a single one has no logits; got 1")
    if positive_weight is not None:
        per_view = isinstance(positive_weight, Tensor) and positive_weight.dim() == 2
        check_weight("positive_weight", positive_weight, (2, samples) if per_view else samples, "z0", z0)
        positive_weight = positive_weight.double().expand(2, samples).reshape(-1)
    options = check_options(samples, "z0", z0, weight, reduction, label_smoothing, debias, return_metrics)
    return contrast_views(views, temperature, ids, options, decoupled=True, positive_weight=positive_weight)


def dclw(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    *,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """`dcl` with its paper's weights of the positives, w = 2 − N·softmax(s_p / σ) over the samples (von Mises-Fisher).

    Args:
        sigma: σ > 0. The rest as `dcl`'s.
    """
    check_views(z0, z1)
    check_number("sigma", sigma)
    similarity = dots(z0.detach(), z1.detach())
    return dcl(
        z0,
        z1,
        temperature,
        positive_weight=2 - z0.shape[0] * torch.softmax(similarity / sigma, 0),
        ids=ids,
        weight=weight,
        reduction=reduction,
        label_smoothing=label_smoothing,
        debias=debias,
        return_metrics=return_metrics,
    )
