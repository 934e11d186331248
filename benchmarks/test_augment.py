"""Augment family: every recipe of the benchmark's table, our kernels beside their peers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import suite
from pyssl_fast.benchmark import augment
from pyssl_fast.benchmark.cases import Case


@pytest.mark.parametrize(("case", "name", "precision"), suite.parameters(augment.CASES, [64]))
def test_augment(benchmark: Any, case: Case, name: str, precision: str) -> None:
    suite.run(benchmark, case, name, precision)
