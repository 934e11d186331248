from __future__ import annotations

from typing import Any

from torch import Generator, Tensor, nn

from pyssl_fast import functional
from pyssl_fast.functional.covariance.sigreg import Result, check_lambda, check_settings


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation: `pyssl_fast.functional.sigreg` with its settings. Takes the place of
    lightly's class; from the same seed it draws the same directions.

    Args:
        knots: ≥ 2, frequencies from 0 to t_max.
        t_max: > 0, the largest frequency.
        num_vectors: ≥ 1, directions drawn at each call.
        gather_distributed: False; gathering over processes is not supported.
    """

    def __init__(
        self, *, knots: int = 17, t_max: float = 3.0, num_vectors: int = 1024, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True: gathering over processes is not supported")
        check_settings(num_vectors, knots, t_max)
        self.knots = knots
        self.t_max = t_max
        self.num_vectors = num_vectors
        self.gather_distributed = gather_distributed

    def forward(self, proj: Tensor, *, vectors: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """proj […, N, D] -> the loss, []. vectors [D, M]: in place of drawn ones."""
        return functional.sigreg(
            proj, vectors, num_vectors=self.num_vectors, knots=self.knots, t_max=self.t_max, generator=generator
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # lightly's checkpoints hold frequencies and weights, which follow from the settings.
        for name in ("t", "phi", "weights"):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"knots={self.knots}, t_max={self.t_max:g}, num_vectors={self.num_vectors}"


class LeJEPALoss(nn.Module):
    """LeJEPA's loss: `pyssl_fast.functional.lejepa` with its settings. Takes the place of lightly's class; from the
    same seed it draws the same directions.

    Args:
        lambda_param: 0 to 1, the weight of `SIGReg`; the invariance of views has the rest.
        gather_distributed: False; gathering over processes is not supported.
        sigreg_knots, sigreg_t_max, sigreg_num_vectors: `SIGReg`'s.
        return_terms: return (loss, `functional.LeJEPATerms`).
    """

    def __init__(
        self,
        lambda_param: float = 0.05,
        gather_distributed: bool = False,
        sigreg_knots: int = 17,
        sigreg_t_max: float = 3.0,
        sigreg_num_vectors: int = 1024,
        *,
        return_terms: bool = False,
    ) -> None:
        super().__init__()
        check_lambda(lambda_param)
        self.lambda_param = lambda_param
        self.return_terms = return_terms
        self.sigreg = SIGReg(
            knots=sigreg_knots,
            t_max=sigreg_t_max,
            num_vectors=sigreg_num_vectors,
            gather_distributed=gather_distributed,
        )

    def forward(
        self,
        *,
        local_proj: Tensor,
        global_proj: Tensor,
        vectors: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Result:
        """local_proj [V_local, N, D], global_proj [V_global, N, D] -> the loss, []. vectors [D, M]: in place of drawn
        ones."""
        return functional.lejepa(
            local_proj,
            global_proj,
            vectors,
            lambda_param=self.lambda_param,
            num_vectors=self.sigreg.num_vectors,
            knots=self.sigreg.knots,
            t_max=self.sigreg.t_max,
            generator=generator,
            return_terms=self.return_terms,
        )

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param:g}"
