from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.checks import check_count
from pyssl_fast.functional.covariance.tico import check_moments


class TiCoLoss(nn.Module):
    """TiCo's loss: `pyssl_fast.functional.tico` with its settings and its C. Takes the place of lightly's class.

    Differences: C is a buffer, so it is saved, moved and loaded with the module; and a batch whose C would not be
    finite, as an overflow under GradScaler, leaves it as it is. Under gradient checkpointing call the function instead:
    a second forward pass would move C once more.

    Args:
        beta: 0 to 1, C's share of what it was before.
        rho: ≥ 0, the weight of the covariance contrast.
        gather_distributed: False; gathering over processes is not supported.
        dim: the length of the embeddings; None: that of the first ones, or of the state that is loaded.

    Attributes:
        C: [dim, dim] float32, zeros before the first batch; [0, 0] as long as dim is not known.
    """

    C: Tensor

    def __init__(
        self, beta: float = 0.9, rho: float = 8.0, gather_distributed: bool = False, *, dim: int | None = None
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        check_moments(beta, rho)
        if dim is not None:
            check_count("dim", dim)
        self.beta = beta
        self.rho = rho
        self.gather_distributed = gather_distributed
        self.register_buffer("C", torch.zeros(dim or 0, dim or 0))

    def forward(self, z_a: Tensor, z_b: Tensor, update_covariance_matrix: bool = True) -> Tensor:
        """z_a, z_b [N, D], N ≥ 2 -> the loss, []. update_covariance_matrix: keep the C that it was made with."""
        before = self.C if self.C.numel() else None
        loss, after = functional.tico(z_a, z_b, before, self.beta, self.rho)
        if update_covariance_matrix:
            with torch.no_grad():
                if before is None:
                    self.C = before = self.C.new_zeros(after.shape)
                # An entry of a row that is not finite stands squared on the diagonal.
                finite = after.diagonal().isfinite().all()
                self.C.copy_(torch.where(finite, after.to(before.dtype), before))
        return loss

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = f"{prefix}C"
        saved = state_dict.get(name)
        if isinstance(saved, Tensor) and saved.dim() == 2 and saved.numel() and not self.C.numel():
            self.C = self.C.new_zeros(saved.shape)
        elif saved is None or (isinstance(saved, Tensor) and not saved.numel()):
            # Saved before the first batch, or by a loss without a buffer: this one keeps what it has.
            state_dict = {**state_dict, name: self.C}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, rho={self.rho:g}, dim={self.C.shape[0] or None}"
