from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.covariance.vibcreg import check_weights
from pyssl_fast.functional.covariance.vicreg import Result


class VIbCRegLoss(nn.Module):
    """VIbCReg's loss: `pyssl_fast.functional.vibcreg` with its settings, solo-learn's.

    Args:
        sim_loss_weight, var_loss_weight, cov_loss_weight: ≥ 0, the weights of invariance, variance and covariance.
        eps: > 0, added to the variances.
        return_terms: return (loss, `functional.VICRegTerms`).
    """

    def __init__(
        self,
        sim_loss_weight: float = 25.0,
        var_loss_weight: float = 25.0,
        cov_loss_weight: float = 200.0,
        *,
        eps: float = 1e-4,
        return_terms: bool = False,
    ) -> None:
        super().__init__()
        check_weights(sim_loss_weight, var_loss_weight, cov_loss_weight, eps)
        self.sim_loss_weight = sim_loss_weight
        self.var_loss_weight = var_loss_weight
        self.cov_loss_weight = cov_loss_weight
        self.eps = eps
        self.return_terms = return_terms

    def forward(self, z0: Tensor, z1: Tensor) -> Result:
        """z0, z1 [N, D], N ≥ 2 -> the loss, []."""
        return functional.vibcreg(
            z0,
            z1,
            self.sim_loss_weight,
            self.var_loss_weight,
            self.cov_loss_weight,
            eps=self.eps,
            return_terms=self.return_terms,
        )

    def extra_repr(self) -> str:
        return (
            f"sim_loss_weight={self.sim_loss_weight:g}, var_loss_weight={self.var_loss_weight:g},"
            f" cov_loss_weight={self.cov_loss_weight:g}, eps={self.eps:g}"
        )
