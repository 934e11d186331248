"""Multi-tensor family: every step of the benchmark's table, our kernels beside their peers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import suite
from pyssl_fast.benchmark import multi_tensor
from pyssl_fast.benchmark.cases import Case


@pytest.mark.parametrize(("case", "name", "precision"), suite.parameters(multi_tensor.CASES, [161]))
def test_multi_tensor(benchmark: Any, case: Case, name: str, precision: str) -> None:
    suite.run(benchmark, case, name, precision)
