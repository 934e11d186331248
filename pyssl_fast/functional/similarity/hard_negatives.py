"""NT-Xent whose negatives count by their hardness."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.similarity.nt_xent import check_views, contrast_views
from pyssl_fast.functional.similarity.softmax import Result, check_options


def hard_negative_nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    beta: float = 1.0,
    debias: float | Tensor = 0.1,
    extra_views: Sequence[Tensor] = (),
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    return_metrics: bool = False,
) -> Result:
    """NT-Xent with hard negatives (Robinson et al. 2021, section 4).

    With logits t, p the positive of row i, and its N negatives j

        loss_i = −log(exp(t_ip) / (exp(t_ip) + max(G_i, N·e^(−1/τ))))
        G_i = (N·Σ_j exp((1 + β)·t_ij) / Σ_j exp(β·t_ij) − τ⁺·N·exp(t_ip)) / (1 − τ⁺)

    Harder negatives weigh more by exp(β·t); β = 0 is the debiased loss of Chuang et al. 2020, and τ⁺ = 0 besides
    `nt_xent`. Both sums come from one pass. With more views exp(t_ip) in G is the mean over the positives.

    Args:
        z0, z1: [N, D] embeddings of two views: float32, float16, bfloat16 or float64, not normalised.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        beta: β of 0 to 1e3.
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives.
        extra_views: further views, each like z0.
        ids: [N] integers; samples of equal ids are no negatives of each other.
        weight: [N] weight of every sample; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean" over all V·N rows, "sum", or "none".
        return_metrics: return (loss, `Metrics`), from the same pass; its lse is with the weighted negatives.

    Returns:
        [] loss, or [V, N] with reduction="none"; float32 (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, by name.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    views = check_views(z0, z1, extra_views)
    check_number("beta", beta, 0, 1e3)
    options = check_options(z0.shape[0], "z0", z0, weight, reduction, debias=debias, return_metrics=return_metrics)
    return contrast_views(views, temperature, ids, options, beta=beta)
