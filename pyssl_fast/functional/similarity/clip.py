"""CLIP's loss: images and their texts, both ways."""

from __future__ import annotations

from torch import Tensor

from pyssl_fast.functional.checks import autocast_together, check_alike, check_embeddings, check_ids
from pyssl_fast.functional.similarity.softmax import Result, check_options, factor, finish, fused


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, fig. 3) of the logits t_ij = scale·⟨image_i, text_j⟩ + bias.

        loss_i = −log(exp(t_ii) / Σ_j exp(t_ij))   of every image, and of every text along its column

    The features are not normalised here. One pass over the [N, N] logits serves both ways, and they are never held:
    2·N²·D operations forward and 6·N²·D backward (4 where one tower is locked, as in LiT, Zhai et al. 2022).

    Args:
        image_features: [N, D] float32, float16, bfloat16 or float64.
        text_features: [N, D] like image_features.
        logit_scale: what the logits are multiplied with, a number or a Tensor with one element, which gets its exact
            gradient.
        logit_bias: added to all logits, which changes nothing: its gradient is 0.
        ids: [N] integers: pairs of equal ids are no negatives.
        weight: [N] weight of every sample; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean" over all 2N rows, "sum", or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's.
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020; of features of length 1). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass.

    Returns:
        [] loss, or [2, N] with reduction="none": of the images, then of the texts; float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, by name.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    image_features, text_features = autocast_together(image_features, text_features)
    check_embeddings("image_features", image_features)
    check_embeddings("text_features", text_features)
    check_alike("text_features", text_features, "image_features", image_features)
    samples = image_features.shape[0]
    options = check_options(
        samples, "image_features", image_features, weight, reduction, label_smoothing, debias, return_metrics
    )
    scale = factor("logit_scale", logit_scale, image_features)
    ids = check_ids("ids", ids, samples, "image_features", image_features)
    negatives, positive = fused(
        image_features,
        text_features,
        scale,
        options,
        row_ids=ids,
        column_ids=ids,
        views=2,
        normalize=False,
        columns=True,
    )
    result = finish(negatives, positive, scale, options, image_features, 2)
    if logit_bias is None:
        return result
    bias = factor("logit_bias", logit_bias, image_features)
    if not return_metrics:
        return result + 0 * bias  # in the graph: a parameter without a gradient stops DistributedDataParallel
    loss, metrics = result
    return loss + 0 * bias, metrics._replace(lse=metrics.lse + bias.detach())
