from __future__ import annotations

from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_number, check_reduction


class NegativeCosineSimilarity(nn.Module):
    """SimSiam's loss: `pyssl_fast.functional.negative_cosine_similarity`. Takes the place of lightly's class.

    Args:
        dim: the dimension along which the vectors lie.
        eps: shorter vectors are divided by this.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8, *, reduction: str = "mean") -> None:
        super().__init__()
        check_number("eps", eps)
        check_reduction(reduction)
        self.dim = dim
        self.eps = eps
        self.reduction = reduction

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1 [N, D] -> the loss, [] ([N] unreduced). Detach what stands still."""
        return functional.negative_cosine_similarity(x0, x1, self.dim, self.eps, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps:g}, reduction={self.reduction!r}"
