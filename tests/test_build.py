"""The build itself: one build without OpenMP, in a temporary folder, and a build that has no compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    command += ["--build-temp", str(folder / "temp")]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def without_openmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    installed = sorted(ROOT.glob("pyssl_fast/_cuda*.so"))
    done = build(folder, CMAKE_ARGS="-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON -DPYSSL_CUDA=OFF")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no OpenMP found; the CPU kernels will run on one thread" in done.stderr
    assert sorted(ROOT.glob("pyssl_fast/_cuda*.so")) == installed  # it is built elsewhere, and takes nothing away here
    (folder / "said").write_text(done.stdout)
    return folder


def test_without_openmp_the_kernels_run_on_one_thread(without_openmp: Path) -> None:
    library = next(without_openmp.glob("lib/pyssl_fast/_cpu*.so"))
    code = """
import importlib.util, sys, torch
if sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("pyssl_fast._cpu", sys.argv[1])
    sys.modules["pyssl_fast._cpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pyssl_fast._cpu"])
from pyssl_fast.kernels.cpu import similarity
torch.manual_seed(0)
z, scale = torch.randn(500, 20), torch.tensor(4.0)
lse, _, _ = similarity.contrast(z, None, scale, None, None, None, None, [0], [1.0], 2, True, False)
print(similarity._cpu.HAS_OPENMP, lse.sum().item().hex())
"""
    printed = [
        subprocess.run([sys.executable, "-c", code, *argument], capture_output=True, text=True).stdout.split()
        for argument in ([], [str(library)])
    ]
    assert [openmp for openmp, _ in printed] == ["True", "False"]
    assert printed[0][1] == printed[1][1]


def test_without_cuda_one_line_says_so(without_openmp: Path) -> None:
    assert not list(without_openmp.glob("lib/pyssl_fast/_cuda*"))
    said = [line for line in (without_openmp / "said").read_text().splitlines() if "_cuda" in line]
    assert said == ["-- pyssl_fast: built without _cuda: PYSSL_CUDA=OFF"]


def test_no_symbol_is_shared_between_instruction_sets(without_openmp: Path) -> None:
    """A weak symbol outside of its set's namespace would be merged by the linker: AVX-512 code on a machine without."""
    objects = sorted(without_openmp.glob("temp/**/cpu_*.dir/**/*.o"))
    assert len(objects) >= 2
    for path in objects:
        isa = re.search(r"cpu_(\w+)\.dir", str(path)).group(1)
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if re.search(r" [WVuw] ", line) and "DW.ref." not in line]
        shared = [line for line in weak if f"pyssl::{isa}::" not in line]
        assert not shared, f"{path.name}, {isa}: {shared}"


def test_without_a_compiler_the_message_is_readable(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="no-such-compiler")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pyssl_fast: CMake could not configure the build. It needs a C++17 compiler (GCC or Clang)")
    assert "Traceback" not in done.stderr
