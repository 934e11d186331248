"""SIGReg and LeJEPA: embeddings whose projections on random directions are distributed as a standard Gaussian."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_together,
    check_count,
    check_embeddings,
    check_kin,
    check_number,
    check_shape_and_device,
)
from pyssl_fast.ops.similarity import statistics_dtype


class LeJEPATerms(NamedTuple):
    """The terms of LeJEPA's loss, [] each, not weighted, with their gradients."""

    sigreg: Tensor
    invariance: Tensor

    def weighted(self, lambda_param: float) -> Tensor:
        return lambda_param * self.sigreg + (1 - lambda_param) * self.invariance

    def to(self, dtype: torch.dtype) -> LeJEPATerms:
        return LeJEPATerms(*(term.to(dtype) for term in self))


# The loss; with return_terms=True the pair (loss, its terms). `Any` spares callers a cast for either.
Result: TypeAlias = Tensor | Any


def sigreg(
    z: Tensor,
    vectors: Tensor | None = None,
    *,
    num_vectors: int = 1024,
    knots: int = 17,
    t_max: float = 3.0,
    generator: Generator | None = None,
) -> Tensor:
    """Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, LeJEPA, arXiv:2511.08544): the Epps-Pulley
    statistic of N samples projected on M directions, against the standard Gaussian φ(t) = exp(−t²/2).

    With p = z·vectors, and the trapezoidal rule over `knots` equally spaced frequencies t of [0, t_max], taken twice
    for the negative ones,

        statistic = N·∫ φ(t)·((mean cos(t·p) − φ(t))² + (mean sin(t·p))²) dt        means over the samples
        loss      = its mean over the directions, and over all dimensions of z before the last two

    Two products of 2·G·N·D·M operations, forward and backward, and one `characteristic`, which never holds
    samples × directions × knots; N·M projections are kept for backward. The products are float32 and follow
    torch.get_float32_matmul_precision(), under autocast too; the statistic is formed in float64.

    Args:
        z: […, N, D], float32, float16, bfloat16 or float64; every group of N samples has a statistic of its own.
        vectors: [D, M] directions, taken as they are. None: `num_vectors` of them are drawn, with torch.randn in z's
            dtype as lightly draws them, and divided by their length.
        num_vectors: ≥ 1, how many are drawn.
        knots: ≥ 2, frequencies from 0 to t_max.
        t_max: > 0, the largest frequency.
        generator: draws the vectors in place of torch's own.

    Returns:
        [] loss; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings or vectors, a setting that is no number.
        ValueError: an empty z, vectors of another length or device, a setting out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    check_embeddings("z", z, "[…, N, D]")
    check_settings(num_vectors, knots, t_max)
    vectors = _vectors(vectors, "z", z, num_vectors, generator)
    return _statistic(z.unsqueeze(0) if z.dim() == 2 else z.flatten(0, -3), vectors, knots, t_max).to(
        statistics_dtype(z)
    )


def lejepa(
    local_proj: Tensor,
    global_proj: Tensor,
    vectors: Tensor | None = None,
    *,
    lambda_param: float = 0.05,
    num_vectors: int = 1024,
    knots: int = 17,
    t_max: float = 3.0,
    generator: Generator | None = None,
    return_terms: bool = False,
) -> Result:
    """LeJEPA's loss (Balestriero & LeCun 2025, arXiv:2511.08544, alg. 2) of local and global views z_v.

        invariance = mean over all views, samples and dimensions of (z_v − mean of the global views)²
        loss       = lambda_param·sigreg + (1 − lambda_param)·invariance

    sigreg is the mean of `sigreg` over all views, on the same directions. No view is copied.

    Args:
        local_proj: [V_local, N, D], float32, float16, bfloat16 or float64.
        global_proj: [V_global, N, D], alike.
        vectors, num_vectors, knots, t_max, generator: as `sigreg` takes them.
        lambda_param: 0 to 1, the weight of sigreg.
        return_terms: return (loss, `LeJEPATerms`).

    Returns:
        [] loss; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings or vectors, different dtypes, a setting that is no number.
        ValueError: views of different batches, lengths or devices, an empty view, vectors of another length or device,
            a setting out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    local_proj, global_proj = autocast_together(local_proj, global_proj, elementwise=True)
    check_embeddings("local_proj", local_proj, "[V, N, D]")
    check_embeddings("global_proj", global_proj, "[V, N, D]")
    shape = (local_proj.shape[0], *global_proj.shape[1:])
    check_shape_and_device("local_proj", local_proj, shape, "global_proj", global_proj)
    check_kin("local_proj", local_proj, "global_proj", global_proj)
    check_settings(num_vectors, knots, t_max)
    check_lambda(lambda_param)
    vectors = _vectors(vectors, "global_proj", global_proj, num_vectors, generator)

    dtype = statistics_dtype(global_proj)
    centre = global_proj.mean(0, dtype=dtype)
    views, count = (global_proj, local_proj), len(global_proj) + len(local_proj)
    regularities = [len(z) / count * _statistic(z, vectors, knots, t_max) for z in views]
    distances = [F.mse_loss(z.to(dtype), centre.expand_as(z), reduction="sum").double() for z in views]
    terms = LeJEPATerms(torch.stack(regularities).sum(), torch.stack(distances).sum() / (count * centre.numel()))
    loss = terms.weighted(lambda_param).to(dtype)
    return (loss, terms.to(dtype)) if return_terms else loss


def check_settings(num_vectors: int, knots: int, t_max: float) -> None:
    check_count("num_vectors", num_vectors)
    check_count("knots", knots, low=2)
    check_number("t_max", t_max)


def check_lambda(lambda_param: float) -> None:
    check_number("lambda_param", lambda_param, low=0, high=1)


def _vectors(vectors: Tensor | None, like_name: str, like: Tensor, count: int, generator: Generator | None) -> Tensor:
    """[D, M] float32, or float64 with like [V, N, D]: those given, or some of length 1."""
    dim, dtype = like.shape[-1], statistics_dtype(like)
    if vectors is None:
        drawn = torch.randn(dim, count, generator=generator, device=like.device, dtype=like.dtype).to(dtype)
        return drawn / drawn.norm(dim=0)
    check_embeddings("vectors", vectors, "[D, M]")
    check_shape_and_device("vectors", vectors, (dim, vectors.shape[1]), like_name, like)
    return vectors.to(dtype)


def _statistic(z: Tensor, vectors: Tensor, knots: int, t_max: float) -> Tensor:
    """[] float64, the mean of the statistics of z [G, N, D] on vectors [D, M]."""
    step = t_max / (knots - 1)
    with torch.autocast(z.device.type, enabled=False):
        projection = z.to(vectors.dtype) @ vectors
    # Frequency 0 is left out: its error is 0.
    cosine, sine = torch.ops.pyssl_fast.characteristic(
        projection, step, knots - 1, backend.choose("covariance", projection)
    )
    t = step * torch.arange(1, knots, dtype=torch.float64, device=z.device)
    gaussian = (-0.5 * t.square()).exp()
    weight = torch.cat((2 * step * gaussian[:-1], step * gaussian[-1:]))
    error = (cosine - gaussian[:, None]).square() + sine.square()  # [G, knots − 1, M]
    return z.shape[1] * (error.mean((0, 2)) * weight).sum()
