"""What all suites share: the device, and the facts of the machine in pytest-benchmark's files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyssl_fast.benchmark import machine


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["pyssl_fast"] = machine.facts()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
