"""Whitening with running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyssl_fast.functional.checks import check_count, check_embeddings, check_number
from pyssl_fast.functional.covariance.w_mse import whiten, whiten_by
from pyssl_fast.ops.similarity import statistics_dtype


class Whitening2d(nn.Module):
    """Rows of covariance 1, by the Cholesky factor of theirs (Ermolov et al. 2021). Takes lightly's place.

    `pyssl_fast.functional.whiten` in training, and wherever no statistics are tracked; in evaluation the same with the
    running mean and covariance.

    Args:
        num_features: D.
        momentum: 0 to 1, a batch's share of the running statistics.
        track_running_stats: keep them.
        eps: 0 to 1: the covariance is (1 − eps)·C + eps·1.

    Attributes, buffers of the state dict where statistics are tracked:
        running_mean: [1, D, 1, 1] float32, zeros at first.
        running_variance: [D, D] float32, the covariance, 1 at first.

    Raises:
        TypeError, ValueError: a setting that is no such number.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, num_features: int, momentum: float = 0.01, track_running_stats: bool = True, eps: float = 0
    ) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_number("momentum", momentum, 0, 1)
        check_number("eps", eps, 0, 1)
        self.num_features = num_features
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.eps = eps
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
            self.register_buffer("running_variance", torch.eye(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, D] whitened; or [G, N, D] -> [G, N, D], every group by itself, as G calls in their order.

        Returns float32 (float64 for float64 rows). Errors as `whiten`'s; an x of another length is a ValueError.
        """
        grouped = isinstance(x, Tensor) and x.dim() == 3
        check_embeddings("x", x, "[G, N, D]" if grouped else "[N, D]")
        if x.shape[-1] != self.num_features:
            raise ValueError(f"x must have rows of num_features={self.num_features}; got shape {list(x.shape)}")
        groups = x if grouped else x[None]
        if self.training or not self.track_running_stats:
            result = whiten(groups, self.eps)
            if self.track_running_stats:
                self._track(result.mean, result.covariance)
            return result.x if grouped else result.x[0]
        with torch.autocast(x.device.type, enabled=False):
            centred = groups.to(statistics_dtype(x)) - self.running_mean.view(-1).to(statistics_dtype(x))
            white = whiten_by(centred.flatten(0, 1)[None], self.running_variance[None].to(centred.dtype), self.eps)
        return white.view(x.shape)

    @torch.no_grad()
    def _track(self, mean: Tensor, covariance: Tensor) -> None:
        """G updates by statistics [G, D] and [G, D, D], the last of which weighs most, in one step each."""
        keep, groups = 1 - self.momentum, mean.shape[0]
        age = torch.arange(groups - 1, -1, -1, dtype=mean.dtype, device=mean.device)
        share = self.momentum * keep**age  # [G]
        with torch.autocast(mean.device.type, enabled=False):
            self.running_mean.mul_(keep**groups).add_((share @ mean).view(1, -1, 1, 1))
            self.running_variance.mul_(keep**groups).add_((share @ covariance.flatten(1)).view(covariance.shape[1:]))

    def extra_repr(self) -> str:
        return (
            f"num_features={self.num_features}, momentum={self.momentum:g},"
            f" track_running_stats={self.track_running_stats}, eps={self.eps:g}"
        )
