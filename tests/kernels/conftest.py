"""What the kernels' tests share: instruction sets, thread counts.

Where torch asks for Triton, a Triton that is not there is an error; where it does not, there is nothing to test.
"""

from collections.abc import Iterator
from importlib import metadata
from platform import system

import pytest
import torch

from pyssl_fast import _cpu

if system() != "Linux" or not any(name.startswith("triton") for name in metadata.requires("torch") or ()):
    collect_ignore_glob = ["test_triton_*.py"]


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that runs here, one after the other."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
