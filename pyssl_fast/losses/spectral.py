from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number


class SpectralContrastiveLoss(nn.Module):
    """The spectral contrastive loss: `pyssl_fast.functional.spectral_contrastive` with its setting.

    Args:
        mu: > 0; rows longer than √mu are shortened to it.
    """

    def __init__(self, mu: float = 1.0) -> None:
        super().__init__()
        check_number("mu", mu)
        self.mu = mu

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1 [N, D] -> the loss, []."""
        return functional.spectral_contrastive(z0, z1, self.mu)

    def extra_repr(self) -> str:
        return f"mu={self.mu:g}"
