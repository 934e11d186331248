"""SigLIP: every pair of an image and a text is a binary question."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_together,
    check_embeddings,
    check_ids,
    check_kin,
    check_reduction,
    check_weight,
)
from pyssl_fast.functional.similarity.groups import count_equal
from pyssl_fast.functional.similarity.softmax import factor
from pyssl_fast.ops.similarity import statistics_dtype


def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, alg. 1). With t_ij = scale·⟨image_i, text_j⟩ + bias

        loss_i = Σ_j log(1 + exp(−y_ij·t_ij)),  y_ij = 1 where the two belong together, else −1

    and its mean over the images. The [M, N] logits are never held: memory is O((M + N)·D). The gradient is formed in
    the forward pass: 6·M·N·D operations in all (with reduction="none" 8).

    Args:
        image_features: [M, D]: float32, float16, bfloat16 or float64, normalised by the caller if at all.
        text_features: [N, D] of image_features' dtype and device; N = M without ids.
        logit_scale, logit_bias: numbers or Tensors of one element, which get their exact gradients. The scale
            multiplies (it is exp of open_clip's parameter); no bias is 0.
        ids: [M] integers if M = N, or two, [M] and [N]: images and texts with equal ids belong together. An image
            with k texts weighs each of its positives 1/k. None: image i and text i.
        weight: [M] of every image; constant: they get no gradient, with any reduction.
        reduction: "mean" over the images (Σ w·loss / Σ w), "sum", or "none".

    Returns:
        [] loss, or [M] with reduction="none"; float32 (float64 for float64 features).
        Gradients have the dtype of their input. Second derivatives are not supported.

    Raises:
        TypeError: integer features, float ids, two dtypes, a scale or bias that is no number.
        ValueError: shapes that do not fit, two devices, an empty batch, an unknown reduction.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    image_features, text_features = autocast_together(image_features, text_features)
    check_embeddings("image_features", image_features)
    check_embeddings("text_features", text_features)
    check_kin("text_features", text_features, "image_features", image_features)
    q, k = image_features, text_features
    rows, columns = q.shape[0], k.shape[0]
    if rows != columns and not isinstance(ids, tuple):
        raise ValueError(f"text_features must have {rows} rows, like image_features; got {columns}")
    check_reduction(reduction)
    check_weight("weight", weight, rows, "image_features", q)
    scale = factor("logit_scale", logit_scale, q)
    bias = factor("logit_bias", 0.0 if logit_bias is None else logit_bias, q)
    ones = torch.ones(rows, dtype=torch.float64, device=q.device)
    row_ids, column_ids, positive_weight = None, None, ones
    if ids is not None:
        pair = ids if isinstance(ids, tuple) else (ids, ids)
        if len(pair) != 2:
            raise ValueError(f"ids must be a Tensor or two of them; got {len(pair)}")
        row_ids = check_ids("ids", pair[0], rows, "image_features", q)
        column_ids = check_ids("ids", pair[1], columns, "text_features", k)
        if row_ids is None or column_ids is None:
            raise TypeError("ids must be an integer Tensor of images and one of texts; got None")
        positive_weight = count_equal(row_ids, column_ids).clamp_min(1).double().reciprocal()
    row_weight = ones if weight is None else weight.detach().double()
    dtype, name = statistics_dtype(q), backend.choose("similarity", q)
    if reduction == "none":
        loss = torch.ops.pyssl_fast.sigmoid_rows(q, k, scale, bias, row_ids, column_ids, positive_weight, name)
        return (loss * row_weight).to(dtype)

    grad = torch.is_grad_enabled()
    needs_q, needs_k = grad and q.requires_grad, grad and k.requires_grad
    needs_any = needs_q or needs_k or (grad and (scale.requires_grad or bias.requires_grad))
    # The gradient is formed before the mean's 1/M and a loss scaler's factor are known. In float16 it would underflow
    # with all of 1/M and may overflow with none of it: it gets half of it.
    root = rows**0.5
    total, *_ = torch.ops.pyssl_fast.sigmoid_total(
        q, k, scale, bias, row_ids, column_ids, row_weight / root, positive_weight, needs_q, needs_k, needs_any, name
    )
    divisor = 1 if reduction == "sum" else rows if weight is None else row_weight.sum()
    return (total * root / divisor).to(dtype)
