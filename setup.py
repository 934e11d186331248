"""Drives CMake. The metadata stands in pyproject.toml; torch is not needed to build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeExtension(Extension):
    """An extension that CMakeLists.txt builds whole."""

    def __init__(self, name: str, optional: bool = False) -> None:
        super().__init__(name, sources=[], optional=optional)


class CMakeBuild(build_ext):
    def run(self) -> None:
        self.into_source = bool(self.inplace or self.editable_mode)  # setuptools sets the first aside while it builds
        super().run()

    def build_extensions(self) -> None:
        import pybind11

        # One run for all: it leaves the modules that it can build beside each other.
        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        for extension in self.extensions:
            if extension.optional:  # one of an earlier build must not stay where this one leaves it out
                name = Path(self.get_ext_fullpath(extension.name)).name
                for folder in (target.parent, ROOT / "pyssl_fast") if self.into_source else (target.parent,):
                    (folder / name).unlink(missing_ok=True)
        cmake = shutil.which("cmake")
        if cmake is None:
            sys.exit("pyssl_fast: building needs CMake 3.18 or newer; `pip install cmake` brings one")
        configure = [
            cmake,
            str(ROOT),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        self._run(
            configure,
            build,
            "CMake could not configure the build. It needs a C++17 compiler (GCC or Clang) and make or ninja",
        )
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        self._run([cmake, "--build", ".", "--parallel", jobs], build, "the kernels did not compile")

    @staticmethod
    def _run(command: list[str], folder: Path, complaint: str) -> None:
        try:
            subprocess.run(command, cwd=folder, check=True)
        except subprocess.CalledProcessError:
            # One readable line in place of a traceback; CMake's own words stand above it.
            sys.exit(f"pyssl_fast: {complaint}; its own message stands above.")


setup(
    # _cuda is built where nvcc is.
    ext_modules=[CMakeExtension("pyssl_fast._cpu"), CMakeExtension("pyssl_fast._cuda", optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
