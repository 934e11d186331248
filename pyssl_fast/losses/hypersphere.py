from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number


class HypersphereLoss(nn.Module):
    """Alignment + lam·the mean uniformity of both views (Wang & Isola 2020). Takes the place of lightly's class.

    Args:
        t: the sharpness of the uniformity.
        lam: its weight.
        alpha: > 0, the power of the alignment.
    """

    def __init__(self, t: float = 1.0, lam: float = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        check_number("t", t, low=-1e30)
        check_number("lam", lam, low=-1e30)
        check_number("alpha", alpha)
        self.t = t
        self.lam = lam
        self.alpha = alpha

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """z_a, z_b [N, D], N ≥ 2 -> the loss, []."""
        spread = functional.uniformity(z_a, self.t) + functional.uniformity(z_b, self.t)
        return functional.alignment(z_a, z_b, self.alpha) + self.lam * spread / 2

    def extra_repr(self) -> str:
        return f"t={self.t:g}, lam={self.lam:g}, alpha={self.alpha:g}"
