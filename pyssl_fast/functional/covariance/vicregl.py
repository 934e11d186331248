"""VICRegL: VICReg on global features, and on local ones matched by content and by place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast.functional.checks import (
    check_alike,
    check_count,
    check_embeddings,
    check_kin,
    check_number,
    check_shape_and_device,
    check_two_rows,
)
from pyssl_fast.functional.covariance.vicreg import check_weights, vicreg_terms
from pyssl_fast.ops.similarity import statistics_dtype

Features = Sequence[tuple[Tensor, Tensor]]


def vicregl(
    global_view_features: Features,
    global_view_grids: Sequence[Tensor],
    local_view_features: Features | None = None,
    local_view_grids: Sequence[Tensor] | None = None,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    alpha: float = 0.75,
    *,
    eps: float = 1e-4,
    num_matches: tuple[int, int] = (20, 4),
) -> Tensor:
    """VICRegL (Bardes, Ponce & LeCun 2022), as lightly has it.

        loss = alpha·global + (1 − alpha)·local

    global is VICReg on the views' global features: the invariance a mean over all ordered pairs of a global view and
    another view, variance and covariance means over the views. local is a mean over the same pairs (a, b) of VICReg,
    its covariance halved, on local features of a and what they match in b, num_matches[0] of them, and of b in a,
    num_matches[1] of them: half the sum of both directions, for matches nearest in feature space plus matches nearest
    on the grid. Of a view's features those count whose match is nearest.

    All views' global features go through one `auto_covariance`, as positions; so do all matches of one count.
    Every distance is taken once.

    Args:
        global_view_features: (global [B, G], local [B, H, W, D]) of every global view, B ≥ 2: float32, float16,
            bfloat16 or float64, one dtype. H and W may differ between views.
        global_view_grids: [B, H, W, 2] of every global view, the places of its local features.
        local_view_features, local_view_grids: the same of the local views; None without.
        lambda_param, mu_param, nu_param: ≥ 0, the weights of invariance, variance and covariance.
        alpha: 0 to 1.
        eps: > 0, added to the variances.
        num_matches: of the first and the second direction; a view with fewer local features gives all, as −1 does.

    Returns:
        [] loss (lightly's has shape [1]); float32 (float64 for float64 features). Second derivatives are not supported.

    Raises:
        TypeError: features that are no pairs of tensors, integer features, different dtypes, a number that is none.
        ValueError: fewer than two views, lists of different lengths, local features without grids, different shapes or
            devices, fewer than two samples, a number out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    check_settings(lambda_param, mu_param, nu_param, alpha, eps, num_matches)
    features, grids = _check_views("global_view", global_view_features, global_view_grids)
    globals_ = len(features)
    if local_view_features is not None and local_view_grids is not None:
        more, more_grids = _check_views("local_view", local_view_features, local_view_grids, features)
        features, grids = features + more, grids + more_grids
    elif local_view_features is not None or local_view_grids is not None:
        absent = "local_view_grids" if local_view_grids is None else "local_view_features"
        raise ValueError(f"local_view_features and local_view_grids must come together; {absent} is None")
    if globals_ == 0 or len(features) < 2:
        raise ValueError(
            f"there must be a global view and another view; got {globals_} global and {len(features) - globals_} local"
        )
    whole = [view for view, _ in features]
    parts = [view.flatten(1, 2) for _, view in features]  # [B, H·W, D]
    pairs = [(a, b) for a in range(globals_) for b in range(len(features)) if a != b]

    spread = vicreg_terms(torch.stack(whole, 1), None, eps, 1.0)
    wide = [view.to(statistics_dtype(view)) for view in whole]
    # Of both orders where both views are global.
    apart = [(2 if b < globals_ else 1) * F.mse_loss(wide[a], wide[b]).double() for a, b in pairs if a < b]
    terms = spread._replace(invariance=torch.stack(apart).sum() / len(pairs))
    loss = alpha * terms.weighted(lambda_param, mu_param, nu_param)
    for number, x, y in _matches(parts, [grid.flatten(1, 2) for grid in grids], pairs, num_matches):
        terms = vicreg_terms(x, y, eps, 0.5)
        share = (1 - alpha) * number / (2 * len(pairs))
        loss = loss + share * terms.weighted(lambda_param, mu_param, nu_param / 2)
    return loss.to(torch.promote_types(statistics_dtype(whole[0]), statistics_dtype(parts[0])))


def check_settings(
    lambda_param: float, mu_param: float, nu_param: float, alpha: float, eps: float, num_matches: tuple[int, int]
) -> None:
    check_weights(lambda_param, mu_param, nu_param, eps)
    check_number("alpha", alpha, 0, 1)
    if not isinstance(num_matches, Sequence) or len(num_matches) != 2:
        raise ValueError(f"num_matches must be two numbers; got {num_matches}")
    for number, count in enumerate(num_matches):
        if count != -1:
            check_count(f"num_matches[{number}]", count)


def _check_views(
    name: str, features: Features, grids: Sequence[Tensor], others: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    for what, given in (("features", features), ("grids", grids)):
        if not isinstance(given, Sequence):
            raise TypeError(f"{name}_{what} must be a list; got {type(given).__name__}")
    if len(features) != len(grids):
        raise ValueError(f"{name}_features and {name}_grids must have one length; got {len(features)} and {len(grids)}")
    like_name = "global_view_features[0]"
    checked: list[tuple[Tensor, Tensor]] = []
    for number, (pair, grid) in enumerate(zip(features, grids, strict=True)):
        own = f"{name}_features[{number}]"
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"{own} must be a pair (global [B, G], local [B, H, W, D]); got {type(pair).__name__}")
        whole, part = pair
        like, like_part = (others or checked or [(whole, part)])[0]
        check_embeddings(f"{own}[0]", whole)
        check_embeddings(f"{own}[1]", part, "[B, H, W, D]")
        check_alike(f"{own}[0]", whole, f"{like_name}[0]", like)
        check_two_rows(f"{own}[0]", whole)
        check_kin(f"{own}[1]", part, f"{like_name}[1]", like_part)
        check_shape_and_device(f"{own}[1]", part, (whole.shape[0], *part.shape[1:]), f"{own}[0]", whole)
        check_embeddings(f"{name}_grids[{number}]", grid, "[B, H, W, 2]")
        check_shape_and_device(f"{name}_grids[{number}]", grid, (*part.shape[:3], 2), f"{own}[1]", part)
        checked.append((whole, part))
    return checked, list(grids)


def _matches(
    parts: list[Tensor], grids: list[Tensor], pairs: list[tuple[int, int]], num_matches: tuple[int, int]
) -> list[tuple[int, Tensor, Tensor]]:
    """(number, x, y), x and y [B, number·count, D]: all matches of one count, of both directions of every pair, nearest
    by features and by grid."""
    nearest: dict[tuple[int, int, bool], tuple[Tensor, Tensor]] = {}
    # By the limit that holds, or by the view that is too small for it.
    found: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        for (a, b), limit in zip((pair, pair[::-1]), num_matches, strict=True):
            rows = parts[a].shape[1]
            count, group = (rows, (-1, a)) if limit == -1 or limit > rows else (limit, (limit, -1))
            for by_grid in (False, True):
                if (a, b, by_grid) not in nearest:  # where both are global (b, a) asks for it again
                    places = grids if by_grid else parts
                    nearest[a, b, by_grid] = _nearest(places[a], places[b])
                distance, index = nearest[a, b, by_grid]
                best = distance.topk(count, dim=1, largest=False).indices  # [B, count]
                matched = _take(parts[a], best), _take(parts[b], index.gather(1, best))
                found.setdefault(group, []).append(matched)
    return [
        (len(matches), torch.cat([x for x, _ in matches], 1), torch.cat([y for _, y in matches], 1))
        for matches in found.values()
    ]


@torch.no_grad()
def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a [B, P, D], b [B, Q, D] -> [B, P] distance to the nearest in b, and its index."""
    dtype = statistics_dtype(a)
    # topk and not min, and every direction by itself: ties, which grids are full of, fall as in lightly's.
    distance, index = torch.cdist(a.to(dtype), b.to(dtype)).topk(1, dim=2, largest=False)
    return distance[:, :, 0], index[:, :, 0]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, P, D], index [B, K] -> [B, K, D]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
