"""The CUDA sources, compiled by g++ against cuda_on_cpu.h: the module `_cuda`, and the driver that sanitizers watch."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import pyssl_fast

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A table of the launch holds some dozens of tensors, and 37 blocks are the most that a launch has: so few exceed both.
FLAGS = [
    "-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing",
    "-pthread", "-DPYSSL_PARAMETER_BYTES=4096", "-DPYSSL_MAX_BLOCKS=37", f"-I{HERE}", "-x", "c++",
    str(ROOT / "csrc/cuda/multi_tensor.cu"), str(ROOT / "csrc/cuda/augment.cu"),
]  # fmt: skip


def _compile(*arguments: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    done = subprocess.run(["g++", *FLAGS, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def module(folder: Path) -> Path:
    """The Python module; returns its path."""
    import pybind11

    path = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    defines = ['-DPYSSL_COMPILER="g++"', '-DPYSSL_TARGETS="host"']
    shared = [
        "-DCUDA_ON_CPU_FIBERS",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        str(ROOT / "csrc/bindings/cuda.cpp"),
        "-o",
        str(path),
    ]
    _compile(*includes, *defines, *shared)
    return path


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path: Path) -> ModuleType:
    """That Python module, under a name of its own: pybind11 would give the real one again, if that is loaded."""
    return _load("emulated._cuda", path)


def kernels(emulated: ModuleType, family: str) -> ModuleType:
    """kernels/cuda/<family>.py, on a `_cuda` whose device is this machine's threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyssl_fast._cuda", emulated)
        patch.setattr(pyssl_fast, "_cuda", emulated, raising=False)
        loaded = _load(f"{family}_on_cpu", ROOT / f"pyssl_fast/kernels/cuda/{family}.py")
    loaded.stream = lambda x: (0, 0)  # type: ignore[attr-defined]
    return loaded


def driver(folder: Path, sanitizers: str) -> Path:
    """driver.cpp; returns the executable's path."""
    path = folder / sanitizers.partition(",")[0]
    checks = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    _compile(*checks, str(HERE / "driver.cpp"), "-o", str(path))
    return path
