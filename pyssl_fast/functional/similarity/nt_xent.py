"""NT-Xent, the loss of SimCLR, and what its relatives share with it: the views of one batch against each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast.functional.checks import autocast_together, check_alike, check_embeddings, check_ids
from pyssl_fast.functional.similarity.softmax import Options, Result, check_options, finish, fused, inverse


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    extra_views: Sequence[Tensor] = (),
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """NT-Xent, the normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, eq. 1).

    With z = cat(views) and s the cosine similarity of its V·N rows, for every row i

        loss_i = −mean over its positives p of log(exp(s_ip / τ) / Σ_{j≠i} exp(s_ij / τ))

    where the positives are the other views of the same sample. Two views give SimCLR's loss, more views the 'out' form
    of SupCon (Khosla et al. 2020, eq. 2). The [V·N, V·N] similarities are never held: memory is O(V·N·D).

    With M = V·N rows: 4·M²·D operations for forward and backward (two matrix products; half of S each time, and its
    product with z), a few M·D bytes, and M·D·(V − 1) operations in double for the positives.

    Args:
        z0: [N, D] embeddings of the first view: float32, float16, bfloat16 or float64, not normalised.
        z1: [N, D] embeddings of the second view, of z0's dtype and device.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        extra_views: further views, each like z0.
        ids: [N] integers, of any dtype; samples of equal ids are no negatives of each other.
        weight: [N] weight of every sample; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean" over all V·N rows, "sum", or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the row's positives and negatives.
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass.

    Returns:
        [] loss, or [V, N] with reduction="none"; float32 (float64 for float64 embeddings).
        Gradients have the dtype of their input. Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, different dtypes, a temperature that is no number.
        ValueError: different shapes or devices, an empty batch, a temperature that is 0, infinite or NaN (a Tensor's
            value is read on the CPU only), an unknown reduction, an option out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    views = check_views(z0, z1, extra_views)
    options = check_options(len(z0), "z0", z0, weight, reduction, label_smoothing, debias, return_metrics)
    return contrast_views(views, temperature, ids, options)


def check_views(z0: Tensor, z1: Tensor, extra_views: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    views = autocast_together(z0, z1, *extra_views)
    z0 = views[0]
    check_embeddings("z0", z0)
    for number, view in enumerate(views[1:], start=1):
        name = "z1" if number == 1 else f"extra_views[{number - 2}]"
        check_embeddings(name, view)
        check_alike(name, view, "z0", z0)
    return views


def contrast_views(
    views: Sequence[Tensor],
    temperature: float | Tensor,
    ids: Tensor | None,
    options: Options,
    *,
    beta: float = 0.0,
    decoupled: bool = False,
    positive_weight: Tensor | None = None,
) -> Result:
    """The loss of V views [N, D] against each other, of [V, N] rows. The rest as `fused` and `finish` have it."""
    scale = inverse(temperature, views[0])
    ids = check_ids("ids", ids, views[0].shape[0], "z0", views[0])
    z = torch.cat(list(views))  # [V·N, D]
    row_ids = None if ids is None else ids.repeat(len(views))
    negatives, positive = fused(z, None, scale, options, row_ids=row_ids, views=len(views), beta=beta)
    return finish(
        negatives, positive, scale, options, z, len(views), decoupled=decoupled, positive_weight=positive_weight
    )
