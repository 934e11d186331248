from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_choice
from pyssl_fast.functional.covariance.vicreg import VARIANCES, Result, check_weights


class VICRegLoss(nn.Module):
    """VICReg's loss: `pyssl_fast.functional.vicreg` with its settings. Takes the place of lightly's class.

    Args:
        lambda_param, mu_param, nu_param: ≥ 0, the weights of invariance, variance and covariance.
        gather_distributed: False; gathering over processes is not supported.
        eps: > 0, added to the variances.
        variance: "mean" of the views' terms, or their "sum" as in the paper's equation and solo-learn.
        return_terms: return (loss, `functional.VICRegTerms`).
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 1e-4,
        *,
        variance: str = "mean",
        return_terms: bool = False,
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        check_weights(lambda_param, mu_param, nu_param, eps)
        check_choice("variance", variance, VARIANCES)
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.gather_distributed = gather_distributed
        self.eps = eps
        self.variance = variance
        self.return_terms = return_terms

    def forward(self, z_a: Tensor, z_b: Tensor) -> Result:
        """z_a, z_b [N, …, D], N ≥ 2 -> the loss, []."""
        return functional.vicreg(
            z_a,
            z_b,
            self.lambda_param,
            self.mu_param,
            self.nu_param,
            eps=self.eps,
            variance=self.variance,
            return_terms=self.return_terms,
        )

    def extra_repr(self) -> str:
        return (
            f"lambda_param={self.lambda_param:g}, mu_param={self.mu_param:g}, nu_param={self.nu_param:g},"
            f" eps={self.eps:g}, variance={self.variance!r}"
        )
