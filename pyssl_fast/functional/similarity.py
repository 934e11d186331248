"""Similarity family: losses that reduce over S = Q Kᵀ without holding it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import check_alike, check_embeddings, check_reduction, check_temperature, reduce
from pyssl_fast.ops.similarity import statistics_dtype


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    extra_views: Sequence[Tensor] = (),
    reduction: str = "mean",
) -> Tensor:
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
        reduction: "mean" over all V·N rows, "sum", or "none".

    Returns:
        [] loss, or [V, N] with reduction="none"; float32 (float64 for float64 embeddings).
        Gradients have the dtype of their input. Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, different dtypes, a temperature that is no number.
        ValueError: different shapes or devices, an empty batch, a temperature that is 0, infinite or NaN (a Tensor's
            value is read on the CPU only), an unknown reduction.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    check_embeddings("z0", z0)
    views = (z0, z1, *extra_views)
    for number, view in enumerate(views[1:], start=1):
        name = "z1" if number == 1 else f"extra_views[{number - 2}]"
        check_embeddings(name, view)
        check_alike(name, view, "z0", z0)
    check_temperature(temperature)
    check_reduction(reduction)

    z = torch.cat(views)  # [V·N, D]
    dtype = statistics_dtype(z)
    if isinstance(temperature, Tensor):
        scale = temperature.to(z.device, dtype).reshape(()).reciprocal()
    else:
        scale = torch.full((), 1.0 / temperature, dtype=dtype, device=z.device)
    nll, _, _ = torch.ops.pyssl_fast.nt_xent(z, scale, len(views), backend.choose("similarity", z))
    return reduce(nll.view(len(views), -1), reduction)
