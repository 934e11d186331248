"""Our losses beside other packages': value and gradients within the error contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.contract import assert_within_contract


def value_and_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The loss and its gradient for every input, all cast to dtype; what does not matter has gradient 0."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    value = loss(*leaves)
    (value * 1.5).sum().backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


def assert_like_peer(
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    what: str = "",
    eager: Callable[..., Tensor] | None = None,
) -> None:
    """ours in dtype against the peer in float64, with eager's error in dtype allowed, the peer's own without one."""
    mine = value_and_gradients(ours, inputs, dtype)
    rounded = [x.to(dtype) for x in inputs]
    truth = value_and_gradients(peer, rounded, torch.float64)
    theirs = value_and_gradients(eager or peer, rounded, dtype)
    for number, (a, b, c) in enumerate(zip(mine, truth, theirs, strict=True)):
        name = f"{what} {'gradient of input ' + str(number - 1) if number else 'value'}"
        assert_within_contract(a.reshape(b.shape), b, c.reshape(b.shape), dtype, name)


def rows(count: int, dim: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def classes(count: int, number: int, seed: int = 0) -> Tensor:
    return torch.randint(number, (count,), generator=torch.Generator().manual_seed(seed))
