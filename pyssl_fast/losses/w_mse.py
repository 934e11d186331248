from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.covariance.w_mse import check_settings, norm_mse_loss
from pyssl_fast.modules.whitening import Whitening2d


class WMSELoss(nn.Module):
    """W-MSE's loss: `pyssl_fast.functional.w_mse` on `Whitening2d`, with its settings. Takes lightly's place.

    In evaluation the views are whitened by the running statistics, if there are any.

    Args:
        embedding_dim: D.
        momentum, eps, track_running_stats: as `modules.Whitening2d`'s.
        w_iter: ≥ 1 deals into sub-batches.
        w_size: ≥ 2·embedding_dim, rows of a sub-batch; it divides the number of images.
        loss_fn: ([B, D], [B, D]) of two whitened views -> [].
        num_samples: ≥ 2, the number of views.
    """

    def __init__(
        self,
        embedding_dim: int = 128,
        momentum: float = 0.01,
        eps: float = 0.0,
        track_running_stats: bool = True,
        w_iter: int = 1,
        w_size: int = 256,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = norm_mse_loss,
        num_samples: int = 2,
    ) -> None:
        super().__init__()
        self.whitening = Whitening2d(embedding_dim, momentum, track_running_stats, eps)
        check_settings(num_samples, w_size, w_iter)
        if w_size < 2 * embedding_dim:
            raise ValueError(f"w_size must be 2·embedding_dim={2 * embedding_dim} or more; got {w_size}")
        self.w_iter = w_iter
        self.w_size = w_size
        self.loss_f = loss_fn
        self.num_samples = num_samples

    @property
    def num_pairs(self) -> int:
        """Of views."""
        return self.num_samples * (self.num_samples - 1) // 2

    def forward(self, input: Tensor) -> Tensor:
        """input [num_samples·B, D], view after view -> the loss, []."""
        return functional.w_mse(
            input,
            self.num_samples,
            self.w_size,
            self.w_iter,
            self.whitening.eps,
            self.loss_f,
            whitening=self.whitening,
        )

    def extra_repr(self) -> str:
        return f"w_iter={self.w_iter}, w_size={self.w_size}, num_samples={self.num_samples}"
