"""The CUDA sources on host threads: built once for all tests."""

from types import ModuleType

import pytest

from tests.cuda_on_cpu import build


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build.load(build.module(tmp_path_factory.mktemp("module")))
