"""Similarity family, the plain twins: reductions over S = Q Kᵀ that hold S.

All of them speak of logits t = scale·⟨q_i, k_j⟩ and of three kinds of pairs (i, j):

    positives   row i and another view of the same sample; each is looked at by itself
    same        the pairs of equal ids that are neither positives nor a row with itself
    negatives   all others, except a row with itself

`k` is None where the rows are compared with each other (K = Q, S symmetric). `row_ids` [M] and `column_ids` [N] are
int64 or None; without ids no pair is of the same id. `views` = V says where the positives stand: among rows that stand
view after view, row i + n·M/V is another view of row i; with two views q and k, column i is one of row i; 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-12  # F.normalize's: rows shorter than this are divided by it

# A term of `contrast`: over what it reduces, and over which pairs.
ROWS, COLUMNS = 0, 1  # a value per row (a sum along it), or per column
NEGATIVES, SAME = 0, 2


def _partners(rows: int, views: int, symmetric: bool, device: torch.device) -> Tensor:
    """[V-1, M] the columns that hold the positives of every row."""
    row = torch.arange(rows, device=device)
    if not symmetric:
        return row.expand(views - 1 if views else 0, rows)
    return (row + rows // max(views, 1) * torch.arange(1, max(views, 1), device=device)[:, None]) % rows


def _kinds(
    rows: int, columns: int, symmetric: bool, row_ids: Tensor | None, column_ids: Tensor | None, views: int, at: Tensor
) -> tuple[Tensor, Tensor]:
    """(negatives, same): [M, N] bool each."""
    other = torch.ones(rows, columns, dtype=torch.bool, device=at.device)
    if symmetric:
        other.fill_diagonal_(False)
        column_ids = row_ids
    partners = _partners(rows, views, symmetric, at.device)
    other.scatter_(1, partners.T, False)
    if row_ids is None or column_ids is None:
        return other, torch.zeros_like(other)
    equal = row_ids[:, None] == column_ids
    return other & ~equal, other & equal


def _terms(
    t: Tensor,
    kinds: tuple[Tensor, Tensor],
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
) -> Iterator[tuple[int, Tensor]]:
    """Of every term: the dimension that it reduces over, and [M, N] power·t with −inf at the pairs left out."""
    for term, power in zip(terms, powers, strict=True):
        limit = column_limit if term & COLUMNS else None if row_limit is None else row_limit[:, None]
        keep = kinds[1] if term & SAME else kinds[0] if limit is None else kinds[0] & ~(t > limit)
        yield 0 if term & COLUMNS else 1, (power * t).masked_fill(~keep, -torch.inf)


def _statistics(t: Tensor, keep: Tensor, dim: int) -> Tensor:
    """[3, M or N] largest t, sum of t and number of the kept pairs, along dim."""
    largest = t.masked_fill(~keep, -torch.inf).amax(dim)
    return torch.stack((largest, t.masked_fill(~keep, 0).sum(dim), keep.sum(dim).to(t.dtype)))


def _unit(x: Tensor, normalize: bool) -> Tensor:
    return F.normalize(x, dim=1, eps=NORM_EPS) if normalize else x


def contrast(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps over the pairs of every row, or column: what every softmax loss is made of.

    Args:
        q: [M, D] rows.
        k: [N, D] columns, or None: the rows with each other.
        scale: [] the inverse temperature.
        row_ids, column_ids: [M], [N] int64; pairs with equal ids are no negatives. With k None row_ids serve both.
        row_limit, column_limit: [M], [N]; in terms of rows (columns), pairs with t > limit are no negatives. With a k.
        terms: (ROWS or COLUMNS) | (NEGATIVES or SAME), one for each sum; COLUMNS only with a k.
        powers: p > 0 of each term.
        views: where the positives stand (see the top of this file).
        normalize: divide the rows of q and k by their length first.
        statistics: whether to return them too.

    Returns, in float64:
        lse: [Σ M or N] term after term log Σ_j exp(p·t_ij) over the term's pairs; −inf where there are none.
        positive: [V-1, M] t of the positives.
        statistics: [3, M] largest t, Σ t and number of every row's negatives; if a term is of columns [3, M + N], with
            every column's; [3, 0] if not asked for.
    """
    u = _unit(q, normalize)
    v = u if k is None else _unit(k, normalize)
    t = scale.to(u.dtype) * (u @ v.T)  # [M, N]
    kinds = _kinds(len(u), len(v), k is None, row_ids, column_ids, views, t)
    lse = [x.logsumexp(dim) for dim, x in _terms(t, kinds, row_limit, column_limit, terms, powers)]
    positive = t.gather(1, _partners(len(u), views, k is None, t.device).T).T.contiguous()
    found = [t.new_empty(3, 0)]
    if statistics:
        keep = kinds[0] if row_limit is None else kinds[0] & ~(t > row_limit[:, None])
        found.append(_statistics(t, keep, 1))
        if any(term & COLUMNS for term in terms):
            keep = kinds[0] if column_limit is None else kinds[0] & ~(t > column_limit)
            found.append(_statistics(t, keep, 0))
    return torch.cat(lse).double(), positive.double(), torch.cat(found, 1).double()


def contrast_backward(
    grad_lse: Tensor,
    grad_positive: Tensor,
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    lse: Tensor,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of `contrast`: grad_q like q, grad_k like k, grad_scale like scale; those not needed have shape [0].

    A term gives ∂t_ij the weight p·grad_i·exp(p·t_ij − lse_i) (columns: of j); a positive gives it its own gradient.
    """
    u = _unit(q, normalize)
    v = u if k is None else _unit(k, normalize)
    t = scale.to(u.dtype) * (u @ v.T)
    kinds = _kinds(len(u), len(v), k is None, row_ids, column_ids, views, t)
    # A loss scale may be beyond float16.
    both = torch.cat((grad_lse, grad_positive.reshape(-1))).double()
    size = both.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    w = torch.zeros_like(t)
    start = 0
    for (dim, x), power in zip(_terms(t, kinds, row_limit, column_limit, terms, powers), powers, strict=True):
        part = slice(start, start + t.shape[1 - dim])
        start = part.stop
        none = lse[part] == -torch.inf
        shift = lse[part].masked_fill(none, 0).to(t.dtype).unsqueeze(dim)
        w += (x - shift).exp() * (power * grad_lse[part].double() / size).masked_fill(none, 0).to(t.dtype).unsqueeze(
            dim
        )
    partners = _partners(len(u), views, k is None, t.device)
    w.scatter_add_(1, partners.T, (grad_positive.double() / size).to(t.dtype).T)
    grad_scale = size * (w * (u @ v.T)).sum(dtype=torch.float64)
    none = q.new_empty(0)
    if k is None:
        return _through(q, (w + w.T) @ u, normalize, scale * size), none, grad_scale.to(scale.dtype)
    grad_q = _through(q, w @ v, normalize, scale * size) if needs_q else none
    grad_k = _through(k, w.T @ u, normalize, scale * size) if needs_k else none
    return grad_q, grad_k, grad_scale.to(scale.dtype)


def _through(x: Tensor, grad_u: Tensor, normalize: bool, factor: Tensor) -> Tensor:
    """factor·grad_u, led back through the normalisation of x."""
    if normalize:
        norm = x.norm(dim=1, keepdim=True)
        length = norm.clamp_min(NORM_EPS)
        u = x / length
        radial = (u * grad_u).sum(dim=1, keepdim=True)
        grad_u = torch.where(norm < NORM_EPS, grad_u, grad_u - radial * u) / length
    return (grad_u * factor).to(x.dtype)


def bank_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`contrast` against keys that get no gradient, with the gradient of q formed in the same pass.

    Args: as `contrast`'s; terms of ROWS alone; k may have another dtype than q.

    Returns:
        lse: [T, M] float64, of T terms.
        mean_key: [T, M, D] float32 (float64 for such q) Σ_j exp(p·t_ij − lse_i)·k_j: ∂lse_i/∂q_i = p·scale·mean_key.
        statistics: [3, M] float64, or [3, 0].
    """
    k = k.to(q.dtype)
    lse, _, found = contrast(q, k, scale, row_ids, column_ids, row_limit, None, terms, powers, 0, False, statistics)
    lse = lse.view(len(terms), len(q))
    t = scale.to(q.dtype) * (q @ k.T)
    kinds = _kinds(len(q), len(k), False, row_ids, column_ids, 0, t)
    weights = [
        (x - lse[n].nan_to_num(neginf=0).to(t.dtype)[:, None]).exp()
        for n, (_, x) in enumerate(_terms(t, kinds, row_limit, None, terms, powers))
    ]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return lse, torch.stack([w @ k for w in weights]).to(wide), found


def sigmoid_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    gradient: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Σ_j of binary cross-entropies over the pairs of every row (SigLIP, Zhai et al. 2023, alg. 1).

    Args:
        q, k: [M, D], [N, D].
        scale, bias: [] of the logits t = scale·⟨q, k⟩ + bias.
        row_ids, column_ids: [M], [N] int64: pairs with equal ids are positives. None: pairs (i, i).
        row_weight: [M] weight of every row in the total whose gradient is formed.
        positive_weight: [M] weight of every row's positive pairs.
        gradient: whether to form the gradients of Σ_i row_weight_i·loss_i; those not formed have shape [0].
        needs_q, needs_k: which of them.

    Returns:
        loss: [M] float64, Σ_j log(1 + exp(−t)) over positives (times positive_weight), log(1 + exp(t)) over the others.
        grad_q, grad_k: like q and k; grad_scale, grad_bias: [] float64.
    """
    s = q @ k.T
    t = scale.to(s.dtype) * s + bias.to(s.dtype)
    if row_ids is None or column_ids is None:
        row_ids, column_ids = torch.arange(len(q), device=q.device), torch.arange(len(k), device=q.device)
    positive = row_ids[:, None] == column_ids
    weight = torch.where(positive, positive_weight.to(s.dtype)[:, None], 1)
    loss = (weight * F.softplus(torch.where(positive, -t, t))).sum(1).double()
    none = q.new_empty(0)
    if not gradient:
        return loss, none, none, none.double(), none.double()
    w = weight * torch.where(positive, -torch.sigmoid(-t), torch.sigmoid(t)) * row_weight.to(s.dtype)[:, None]
    grad_q = ((w @ k) * scale).to(q.dtype) if needs_q else none
    grad_k = ((w.T @ q) * scale).to(k.dtype) if needs_k else none
    return loss, grad_q, grad_k, (w * s).sum(dtype=torch.float64), w.sum(dtype=torch.float64)


def neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The columns with the largest ⟨q_i, k_j⟩ of every row, the largest first; never a row itself, nor one of its id.

    Returns:
        similarity: [M, count] float32 (float64 for such q); −inf where there are fewer columns.
        index: [M, count] int64, −1 where there are fewer columns. Of equal ones the first.
    """
    v = q if k is None else k.to(q.dtype)
    s = q @ v.T
    negatives, _ = _kinds(len(q), len(v), k is None, row_ids, column_ids, 0, s)
    s = s.masked_fill(~negatives, -torch.inf)
    s = F.pad(s, (0, max(0, count - s.shape[1])), value=-torch.inf)
    similarity, index = s.sort(dim=1, descending=True, stable=True)
    similarity, index = similarity[:, :count].contiguous(), index[:, :count].contiguous()
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return similarity.to(wide), index.masked_fill(similarity == -torch.inf, -1)


def hardest(q: Tensor, ids: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row the hardest pair of each kind, by ⟨q_i, q_j⟩ + offset_j (offset −½‖q_j‖²: by Euclidean distance).

    Returns:
        negative: [M] int64, the row of another id with the largest value; −1 if there is none.
        positive: [M] int64, the other row of the same id with the smallest value; −1 if there is none.
    """
    s = q @ q.T + offset.to(q.dtype)
    negatives, same = _kinds(len(q), len(q), True, ids, None, 0, s)
    far, negative = s.masked_fill(~negatives, -torch.inf).max(1)
    near, positive = s.masked_fill(~same, torch.inf).min(1)
    return negative.masked_fill(far == -torch.inf, -1), positive.masked_fill(near == torch.inf, -1)


def _distances(q: Tensor, euclidean: bool) -> Tensor:
    """[M, M] ‖q_i − q_j‖, or 1 − ⟨q_i, q_j⟩."""
    s = q @ q.T
    if not euclidean:
        return 1 - s
    squares = (q * q).sum(1)
    return (squares[:, None] + squares - 2 * s).clamp_min(0).sqrt()


def triplets(q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool) -> tuple[Tensor, Tensor]:
    """Every row's triplets: Σ over its positives p and negatives n of max(d_ap − d_an + margin, 0), in one pass.

    Args:
        q: [M, D]; ids: [M] int64.
        euclidean: d = ‖q_a − q_b‖, else 1 − ⟨q_a, q_b⟩.
        semi_hard: only the negatives that are farther than the positive (Schroff et al. 2015, FaceNet).

    Returns, in float64:
        loss: [M] the sum; count: [M] the number of its terms above 0.
    """
    d = _distances(q, euclidean)
    negatives, same = _kinds(len(q), len(q), True, ids, None, 0, d)
    loss, count = [], []
    for a in range(len(q)):  # [P, N] at a time
        near, far = d[a][same[a]][:, None], d[a][negatives[a]]
        term = (near - far + margin).clamp_min(0)
        if semi_hard:
            term = term * (far > near)
        loss.append(term.sum(dtype=torch.float64))
        count.append(torch.where(loss[-1].isnan(), loss[-1], (term > 0).sum(dtype=torch.float64)))
    return torch.stack(loss), torch.stack(count)


def triplets_backward(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool
) -> Tensor:
    """Gradient of `triplets`' loss, like q. The distance of two rows that coincide has gradient 0."""
    d = _distances(q, euclidean)
    negatives, same = _kinds(len(q), len(q), True, ids, None, 0, d)
    w = torch.zeros_like(d)  # ∂d
    for a in range(len(q)):
        near, far = d[a][same[a]][:, None], d[a][negatives[a]]
        active = near - far + margin > 0
        if semi_hard:
            active &= far > near
        w[a][same[a]] = active.sum(1).to(w.dtype)
        w[a][negatives[a]] = -active.sum(0).to(w.dtype)
    w *= grad_loss.to(w.dtype)[:, None]
    if not euclidean:
        return -((w + w.T) @ q)
    w = torch.where(d > 0, w / d, 0)
    w = w + w.T
    return w.sum(1, keepdim=True) * q - w @ q
