from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.covariance.barlow_twins import Result


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins' loss: `pyssl_fast.functional.barlow_twins` with its settings. Takes the place of lightly's class.

    Args:
        lambda_param: ≥ 0, the weight of the redundancy.
        gather_distributed: False; gathering over processes is not supported.
        eps: > 0, added to the variances.
        scale_loss: > 0, factor of the loss.
        return_terms: return (loss, `functional.BarlowTwinsTerms`).
    """

    def __init__(
        self,
        lambda_param: float = 5e-3,
        gather_distributed: bool = False,
        *,
        eps: float = 1e-5,
        scale_loss: float = 1.0,
        return_terms: bool = False,
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        check_number("lambda_param", lambda_param, low=0)
        check_number("eps", eps)
        check_number("scale_loss", scale_loss)
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed
        self.eps = eps
        self.scale_loss = scale_loss
        self.return_terms = return_terms

    def forward(self, z_a: Tensor, z_b: Tensor) -> Result:
        """z_a, z_b [N, D], N ≥ 2 -> the loss, []."""
        return functional.barlow_twins(
            z_a,
            z_b,
            self.lambda_param,
            eps=self.eps,
            scale_loss=self.scale_loss,
            return_terms=self.return_terms,
        )

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param:g}, eps={self.eps:g}, scale_loss={self.scale_loss:g}"
