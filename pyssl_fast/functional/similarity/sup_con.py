"""Supervised contrastive learning: as many positives as a row's class has members."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    check_choice,
    check_embeddings,
    check_ids,
    check_number,
    check_shape_and_device,
    check_two_rows,
    reduce,
)
from pyssl_fast.functional.similarity.groups import count_equal, sum_equal
from pyssl_fast.functional.similarity.softmax import (
    ROUNDING,
    Metrics,
    Negatives,
    Options,
    Result,
    check_options,
    debiased,
    inverse,
    softplus,
    unit,
)
from pyssl_fast.ops.similarity import NEGATIVES, ROWS, SAME, statistics_dtype

CONTRAST_MODES = ("all", "one")
VARIANTS = ("out", "in", "sum")
WITHOUT_POSITIVE = ("zero", "skip")
# log Σ exp(p·t) / p is the largest t up to log(n)/p, which is less than the products' rounding: so the most similar row
# of the own class comes from the same pass.
_SHARP = 1e5


def sup_con(
    features: Tensor,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    base_temperature: float | None = 0.07,
    contrast_mode: str = "all",
    *,
    variant: str = "out",
    normalize: bool = False,
    without_positive: str = "zero",
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """SupCon (Khosla et al. 2020). Of A anchors among N = B·V rows, with t = ⟨z_i, z_j⟩ / τ and P(i) the positives of i

        out:  loss_i = −mean_{p ∈ P(i)} log(exp(t_ip) / Σ_{j≠i} exp(t_ij))      (eq. 2)
        in:   loss_i = −log(mean_{p ∈ P(i)} exp(t_ip) / Σ_{j≠i} exp(t_ij))      (eq. 3)
        sum:  as "in", with the sum over p for the mean (solo-learn's simclr_loss_func)

    times τ/τ_base. The positives of a row are the rows of its label and all views of its own sample; or the rows j with
    mask ≠ 0. No [N, N] matrix is held: memory is O(N·D), and O(B²) bytes more with a mask. 4·N²·D operations (A = N),
    O(N·D) in double for the mean of the positives, 4·B²·D in double with a mask.

    `sup_con(z, labels, temperature=τ, base_temperature=None, normalize=True, without_positive="skip")` is
    pytorch-metric-learning's SupConLoss(τ), wherever a batch has positives and negatives.

    Args:
        features: [B, V, …], V views of B samples, or [B, D] one view: float32, float16, bfloat16 or float64.
        labels: [B] or [B, 1] integers. Without labels and mask every sample is its own class (SimCLR).
        mask: [B, B] bool or numbers, how much sample j is a positive of sample i; asymmetric if need be. Not with
            labels. "out" alone, whose mean is linear in the logits.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        base_temperature: τ_base; None for τ.
        contrast_mode: "all": every view is an anchor; "one": the first view. Both look at all views.
        variant: "out", "in" or "sum".
        normalize: divide the rows by their length first. SupContrast leaves that to the caller.
        without_positive: of anchors that have none, "zero": their loss is 0 and counts in the mean (SupContrast);
            "skip": they are left out of the mean (0 if all are).
        weight: [B] weight of every sample; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean" over the anchors, "sum", or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the anchor's positives and negatives; "out" alone.
        debias: τ⁺ of 0 to 1 (excluded), a number or [B]: the share of false negatives taken out of the sum over the
            negatives (Chuang et al. 2020, eq. 8), of which e^(1/τ) bounds the logits: for normalised rows. Not together
            with label smoothing or a mask.
        return_metrics: return (loss, `Metrics`). Its accuracy is the share of the anchors with positives whose most
            similar row is one of them, or as similar as one up to rounding; NaN where a row is. From the same pass;
            with a mask it takes a search, half a matrix product more.

    Returns:
        [] loss, or [V, B] with reduction="none" ([B] with one view of anchors); float32 (float64 for float64
        features). Gradients have the dtype of their input. Second derivatives are not supported.

    Raises:
        TypeError: integer features, float labels, a temperature that is no number.
        ValueError: labels or mask that do not fit, both of them, fewer than two rows, a temperature that is 0, infinite
            or NaN (a Tensor's value is read on the CPU only), an unknown choice, options that do not combine.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    if isinstance(features, Tensor) and features.dim() != 3:
        features = features[:, None] if features.dim() == 2 else features.flatten(2) if features.dim() > 3 else features
    check_embeddings("features", features, "[B, V, D]")
    samples, views = features.shape[:2]
    for name, value, choices in (
        ("contrast_mode", contrast_mode, CONTRAST_MODES),
        ("variant", variant, VARIANTS),
        ("without_positive", without_positive, WITHOUT_POSITIVE),
    ):
        check_choice(name, value, choices)
    options = check_options(samples, "features", features, weight, reduction, label_smoothing, debias, return_metrics)
    if isinstance(labels, Tensor) and labels.shape == (samples, 1):
        labels = labels[:, 0]
    ids = check_ids("labels", labels, samples, "features", features)
    if mask is not None:
        _check_mask(mask, labels, samples, features)
        mask = mask.detach()
        if variant != "out" or options.debias is not None:
            raise ValueError('mask goes with variant "out" and without debias: the others need labels')
    if variant != "out" and label_smoothing:
        raise ValueError('label_smoothing goes with variant "out"')
    if base_temperature is not None:
        check_number("base_temperature", base_temperature)
    scale = inverse(temperature, features)

    z = features.transpose(0, 1).reshape(views * samples, -1)  # view after view
    check_two_rows("features", z)
    groups = views if contrast_mode == "all" else 1
    if ids is None and mask is None:
        ids = torch.arange(samples, device=z.device)
    count = _count_positives(ids, mask, views).repeat(groups)
    none = count < 1e-6  # NaN is not
    if variant == "out" or options.metrics:  # the others need the log-sum-exps alone
        u = unit(z, normalize)
        anchors = u[: count.shape[0]]
        positive = _sum_positives(u, ids, mask, groups, views)
        mean = scale * positive / count.masked_fill(none, 1)
        if options.label_smoothing or options.metrics:
            everything = (anchors * (u.sum(0) - anchors)).sum(1)

    # With ids, the log-sum-exps over the other classes and over the own; with a mask, over all other rows.
    lse, same, nearer = _log_sum_exps(z, ids, scale, groups, views, normalize, options.metrics)
    if same is None:
        loss, total = lse - mean, lse.detach()
    else:
        same, log_count = same.masked_fill(none, 0), count.masked_fill(none, 1).log()
        if options.debias is not None:
            negatives = Negatives(lse, z.shape[0] - 1 - count, None, None)
            lse = debiased(negatives, (same - log_count)[None], scale, options.debias, groups)
        loss = softplus(lse - same)
        if variant == "in":
            loss = loss + log_count
        elif variant == "out":
            # Of one positive `same` is the logit, from the same products as lse: a small loss keeps its digits.
            loss = loss + torch.where(count == 1, 0, same - mean)
        total = torch.logaddexp(lse.detach(), same.detach()).where(~none, lse.detach())
    if options.label_smoothing:
        loss = loss + options.label_smoothing * (mean - scale * everything / (z.shape[0] - 1))
    if base_temperature is not None:
        loss = loss / (scale.double() * base_temperature)
    # Anchors without positives: 0, but NaN if their row is.
    loss = torch.where(none, 0 * total.clamp_min(0), loss)

    shape = (samples,) if groups == 1 else (groups, samples)
    dtype = statistics_dtype(z)
    loss = _reduce(loss.view(shape), none.view(shape) if without_positive == "skip" else None, options).to(dtype)
    if not options.metrics:
        return loss
    if nearer is None:
        assert mask is not None
        nearer = _nearest_is_positive(z, u, mask, groups, views)
    hit = (nearer & ~none).double().masked_fill(total.isnan(), torch.nan)
    cosine, pairs = positive.detach().sum(), count.sum()
    return loss, Metrics(
        (hit.sum() / (~none).sum()).to(dtype),
        (cosine / pairs).to(dtype),
        ((everything.detach().sum() - cosine) / (count.shape[0] * (z.shape[0] - 1) - pairs)).to(dtype),
        total.view(shape).to(dtype),
    )


def _count_positives(ids: Tensor | None, mask: Tensor | None, views: int) -> Tensor:
    """[B] float64: the number of every sample's positives, of one view."""
    if mask is not None:
        return views * mask.sum(1, dtype=torch.float64) - mask.diagonal().double()
    assert ids is not None
    return (views * count_equal(ids, ids) - 1).double()


def _sum_positives(u: Tensor, ids: Tensor | None, mask: Tensor | None, groups: int, views: int) -> Tensor:
    """[A] float64: Σ ⟨u_i, u_p⟩ over the positives p of every anchor. By sums of the classes."""
    samples = u.shape[0] // views
    summed = u.view(views, samples, -1).sum(0)  # [B, D]
    if mask is None:
        assert ids is not None
        near, own = sum_equal(ids, ids, summed), u.new_ones(samples)
    else:
        near = torch.empty_like(summed)
        for part in range(4):  # so that the mask in float64 takes 2·B² bytes, for a bool mask's own B²
            near[part::4] = mask[part::4].double() @ summed
        own = mask.diagonal().double()
    anchors, own = u[: groups * samples], own.repeat(groups)
    return (anchors * (near.repeat(groups, 1) - own[:, None] * anchors)).sum(1)


def _log_sum_exps(
    z: Tensor, ids: Tensor | None, scale: Tensor, groups: int, views: int, normalize: bool, watch: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[A] float64 each: over the rows of other ids, and over the others of the same; without ids, over all others.

    With ids, if `watch`, also [A] bool: whether a row of the same id is at least as similar as all of other ids.
    """
    terms, powers = [ROWS | NEGATIVES], [1.0]
    if ids is not None:
        terms, powers = [ROWS | NEGATIVES, ROWS | SAME], [1.0, 1.0]
        if watch:
            terms, powers = [*terms, ROWS | SAME], [*powers, _SHARP]
    anchors = z.shape[0] // views * groups
    # Anchors from the first view alone: the operator's positives are then the rows themselves, and in neither sum.
    q, k = (z, None) if groups == views else (z[:anchors], z)
    lse, _, statistics = torch.ops.pyssl_fast.contrast(
        q,
        k,
        scale,
        None if ids is None else ids.repeat(groups),
        None if ids is None or k is None else ids.repeat(views),
        None,
        None,
        terms,
        powers,
        0 if k is None else 2,
        normalize,
        watch and ids is not None,
        backend.choose("similarity", z),
    )
    if ids is None:
        return lse, None, None
    negatives, same, *rest = lse.view(len(terms), anchors)
    if not rest:
        return negatives, same, None
    largest = statistics[0]
    return negatives, same, rest[0].detach() / _SHARP >= largest - ROUNDING * largest.abs()


def _reduce(loss: Tensor, skip: Tensor | None, options: Options) -> Tensor:
    """As `reduce`; anchors to skip have no weight in the mean."""
    if skip is None or options.reduction != "mean":
        return reduce(loss, options.reduction, options.weight)
    weight = (~skip).to(loss.dtype)
    if options.weight is not None:
        weight = weight * options.weight
    total = weight.sum()
    return (weight * loss).sum() / total.masked_fill(total == 0, 1)


def _nearest_is_positive(z: Tensor, u: Tensor, mask: Tensor, groups: int, views: int) -> Tensor:
    """[A] bool: whether the most similar other row is a positive, or one of the next three that are as similar is.

    A search of its own: the operators know no masks.
    """
    row = torch.arange(z.shape[0], device=z.device)
    samples, anchors = z.shape[0] // views, z.shape[0] // views * groups
    k = u.detach().to(z.dtype)
    name = backend.choose("similarity", z)
    if groups == views:
        similarity, index = torch.ops.pyssl_fast.neighbours(k, None, min(4, z.shape[0] - 1), None, None, name)
    else:
        similarity, index = torch.ops.pyssl_fast.neighbours(
            k[:anchors], k, min(4, z.shape[0] - 1), row[:anchors], row, name
        )
    largest = similarity[:, :1]
    nearest = (similarity >= largest - ROUNDING * largest.abs()) & (index >= 0)
    sample, other = (row[:anchors] % samples)[:, None], index.clamp_min(0) % samples
    return ((mask[sample, other] != 0) & nearest).any(1)


def _check_mask(mask: Tensor, labels: Tensor | None, samples: int, like: Tensor) -> None:
    if labels is not None:
        raise ValueError("labels and mask must not both be given")
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a Tensor [{samples}, {samples}]; got {type(mask).__name__}")
    if mask.is_complex():
        raise TypeError(f"mask must be bool or real numbers; got {mask.dtype}")
    check_shape_and_device("mask", mask, (samples, samples), "features", like)
