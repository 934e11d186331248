from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.covariance.vicregl import Features, check_settings


class VICRegLLoss(nn.Module):
    """VICRegL's loss: `pyssl_fast.functional.vicregl` with its settings. Takes the place of lightly's class.

    Args:
        lambda_param, mu_param, nu_param: ≥ 0, the weights of invariance, variance and covariance.
        alpha: 0 to 1, the weight of the global loss; the local one's is 1 − alpha.
        gather_distributed: False; gathering over processes is not supported.
        eps: > 0, added to the variances.
        num_matches: of the first and the second direction.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        alpha: float = 0.75,
        gather_distributed: bool = False,
        eps: float = 1e-4,
        num_matches: tuple[int, int] = (20, 4),
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        check_settings(lambda_param, mu_param, nu_param, alpha, eps, num_matches)
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.alpha = alpha
        self.gather_distributed = gather_distributed
        self.eps = eps
        self.num_matches = num_matches

    def forward(
        self,
        global_view_features: Features,
        global_view_grids: Sequence[Tensor],
        local_view_features: Features | None = None,
        local_view_grids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Features (global [B, G], local [B, H, W, D]) and grids [B, H, W, 2] of every view -> the loss, []."""
        return functional.vicregl(
            global_view_features,
            global_view_grids,
            local_view_features,
            local_view_grids,
            self.lambda_param,
            self.mu_param,
            self.nu_param,
            self.alpha,
            eps=self.eps,
            num_matches=self.num_matches,
        )

    def extra_repr(self) -> str:
        return (
            f"lambda_param={self.lambda_param:g}, mu_param={self.mu_param:g}, nu_param={self.nu_param:g},"
            f" alpha={self.alpha:g}, eps={self.eps:g}, num_matches={self.num_matches}"
        )
