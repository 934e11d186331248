"""The teacher of momentum methods: a copy of the networks that follows them slowly (Tarvainen and Valpola 2017)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyssl_fast.ema import cosine_momentum, ema_update_


class Teacher(nn.Module):
    """A copy of networks in a row, whose parameters θ' follow theirs: θ' ← m·θ' + (1 − m)·θ. No gradient enters it.

    Its batch norms keep statistics of their own. It runs in training mode and normalises by its own batch, so that the
    running ones are never read; and the network's would be those of activations under other weights.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = copy.deepcopy(nn.Sequential(*networks)).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        keys: Tensor = self.networks(images)
        return keys

    def follow(self, *networks: nn.Module, momentum: float) -> None:
        """networks: those that it is a copy of; momentum: m, 0 to 1."""
        ema_update_(self.networks.parameters(), nn.Sequential(*networks).parameters(), momentum)


def check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"--momentum must be 0 to 1, got {momentum}")


def rising(momentum: float, progress: float) -> float:
    """From `momentum` at the start to 1 at the end, along half a cosine (Grill et al. 2020, section 3.3)."""
    return cosine_momentum(progress, 1, momentum)
