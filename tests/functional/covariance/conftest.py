from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import pyssl_fast
from tests.functional.covariance.cases import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with pyssl_fast.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()
