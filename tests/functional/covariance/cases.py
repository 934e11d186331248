"""The losses of the covariance family: one table that the tests of what they share run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyssl_fast.functional import barlow_twins, tico, vibcreg, vicreg, w_mse, whiten
from tests.functional.similarity.peers import rows

BACKENDS = ["reference", "cpu"]
# Both sides of N = D, at it, and the smallest.
SHAPES = [(2, 1), (3, 1), (2, 5), (9, 20), (20, 20), (21, 20), (40, 7)]


@dataclass(frozen=True)
class Loss:
    """call: of `inputs` views -> []. shape: of a view after N. fused: it has no second derivative.
    constant: part of it depends on the views and is a constant of the gradient all the same."""

    call: Callable[..., Tensor]
    inputs: int = 2
    shape: tuple[int, ...] = (6,)
    fused: bool = True
    constant: bool = False

    def views(self, samples: int = 24, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [x.to(dtype).requires_grad_() for x in views(samples, *self.shape, count=self.inputs)]


def views(*shape: int, count: int = 2, scale: float = 0.8, seed: int = 0) -> tuple[Tensor, ...]:
    """[N, …, D] each, alike but for noise, of columns that correlate and have a mean."""
    dim = shape[-1]
    size = torch.Size(shape).numel() // dim
    shared = rows(size, dim, seed)
    mix = torch.eye(dim) + 0.3 * rows(dim, dim, seed + 1) / dim**0.5
    noisy = (shared + 0.5 * rows(size, dim, seed + 2 + number) for number in range(count))
    return tuple((scale * (x @ mix + 0.2)).view(shape) for x in noisy)


def second_moment(z: Tensor) -> Tensor:
    return (torch.eye(z.shape[1]) + 0.5).to(torch.promote_types(z.dtype, torch.float32)) / z.shape[1]


LOSSES = {
    "vicreg": Loss(vicreg),
    "vicreg wide": Loss(lambda a, b: vicreg(a, b, 1.0, 2.0, 3.0, variance="sum"), shape=(40,)),
    "vicreg positions": Loss(vicreg, shape=(3, 2, 5)),
    "vicreg terms": Loss(lambda a, b: sum(vicreg(a, b, return_terms=True)[1])),
    "barlow_twins": Loss(barlow_twins),
    "barlow_twins wide": Loss(lambda a, b: barlow_twins(a, b, 0.1, scale_loss=0.024), shape=(40,)),
    "vibcreg": Loss(vibcreg),
    "vibcreg wide": Loss(lambda a, b: vibcreg(a, b, 1.0, 2.0, 300.0), shape=(40,)),
    "tico": Loss(lambda a, b: tico(a, b, second_moment(a), 1.0)[0], fused=False),
    "tico wide": Loss(lambda a, b: tico(a, b, second_moment(a), 0.5, 3.0)[0], shape=(40,), fused=False, constant=True),
    "w_mse": Loss(lambda a, b: w_mse(torch.cat((a, b)), w_size=a.shape[0])),
    "whiten": Loss(lambda a: torch.cat([part.flatten() for part in whiten(a[None], 0.1)]).sin().sum(), 1),
}
