"""The kernels under sanitizers; and that these, and the barriers of cuda_on_cpu.h, catch what is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build


def run(driver: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(driver), what], capture_output=True, text=True, errors="replace")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.driver(tmp_path_factory.mktemp("driver"), "address,undefined")


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build.driver(tmp_path_factory.mktemp("driver"), "thread")
    if "unexpected memory mapping" in (stopped := run(path, "barrier").stderr):
        pytest.skip(f"ThreadSanitizer does not run on this kernel: {stopped}")
    return path


def test_kernels_stay_within_their_memory(addresses: Path) -> None:
    done = run(addresses, "all")
    assert (done.returncode, done.stdout) == (0, "all ran\n"), done.stderr


def test_kernels_have_no_races(threads: Path) -> None:
    done = run(threads, "few")
    assert (done.returncode, done.stdout) == (0, "all ran\n"), done.stderr


def test_a_read_beyond_the_end_is_caught(addresses: Path) -> None:
    done = run(addresses, "overread")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "in read_beyond" in done.stderr


def test_a_barrier_that_is_missing_is_caught(threads: Path) -> None:
    done = run(threads, "race")
    assert done.returncode != 0 and "data race" in done.stderr and "forget_barrier" in done.stderr


def test_a_barrier_that_some_threads_skip_is_an_error_with_its_text(addresses: Path) -> None:
    done = run(addresses, "barrier")
    assert done.returncode == 1
    assert done.stderr.startswith("launch: barrier: of 256 threads 128 wait in line ")
