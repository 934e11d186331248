"""The chunked similarity kernels, compiled ahead of time for every architecture: what their machine code says."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled: run without TRITON_INTERPRET", allow_module_level=True)

import torch

from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from pyssl_fast.kernels.triton import aot, configs
from pyssl_fast.kernels.triton.similarity import chunked, chunked_kernels
from tests.kernels.test_triton_aot import Launches, differences

# They are plain loads, exponentials and sums: no architecture has instructions of its own for them.
each_architecture = pytest.mark.parametrize("architecture", [90, 120], ids="sm_{}".format)


@functools.cache
def builds(architecture: int) -> tuple[aot.Build, ...]:
    return tuple(aot.builds(architecture, "chunks"))


@functools.cache
def row_builds(architecture: int) -> tuple[aot.Build, ...]:
    """Those of the streamed form that have no tables: they are no products either."""
    return tuple(aot.builds(architecture, "rows"))


@each_architecture
def test_no_kernel_spills(architecture: int) -> None:
    for build in builds(architecture):
        assert build.spilled == 0, build
        # Kernels that wait for memory: at least one block of 8 warps beside another, two but for all terms at once.
        assert build.registers <= (168 if "all terms" in build.label else 128), build


def test_no_row_kernel_spills() -> None:
    for build in row_builds(80):
        assert build.spilled == 0 and build.registers <= 255 and build.shared <= configs.SHARED_MEMORY[120], build


@each_architecture
def test_shared_memory_fits(architecture: int) -> None:
    for build in builds(architecture):
        assert build.shared <= 16 * 1024, build


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Kernel -> what was launched."""
    return Launches(monkeypatch).bound


def assert_shipped(launches: dict[str, list[Any]], *expected: str) -> None:
    """What was launched is what was inspected: types, constants, alignment and warps."""
    assert sorted(launches) == sorted(expected)
    for name, launched in launches.items():
        known = [job for job in aot.chunk_jobs() if job.kernel.fn.__name__ == name]
        for got in launched:
            found = [differences(job, got) for job in known]
            assert [] in found, f"{name}: {min(found, key=len)}"


@pytest.mark.parametrize("rows", [2, 1500])
def test_contrast_launches_what_was_inspected(rows: int, launches: dict[str, list[Any]]) -> None:
    scale, pairs = torch.tensor(10.0), (None,) * 4
    for dtype, two_sets, normalize in (
        (torch.float32, False, True),
        (torch.float16, False, True),
        (torch.bfloat16, False, True),
        (torch.float32, True, True),
        (torch.float32, True, False),
        (torch.bfloat16, True, False),
    ):
        q = torch.ones(rows, 32, dtype=dtype)
        k, terms = (q, [ROWS | NEGATIVES, COLUMNS | NEGATIVES]) if two_sets else (None, [ROWS | NEGATIVES])
        rest = (terms, [1.0] * len(terms), 2, normalize)
        lse, positive, _ = chunked.contrast(q, k, scale, *pairs, *rest, False)
        chunked.contrast_backward(lse, positive, q, k, scale, *pairs, lse, *rest, True, True)
        if dtype != torch.float16:
            chunked.bank_contrast(q, q.float(), scale, None, None, None, [ROWS | NEGATIVES], [2.0], False)
    assert_shipped(launches, "sum_terms", "merge", "weigh")


def test_other_terms_launch_what_was_inspected(launches: dict[str, list[Any]]) -> None:
    q, scale, ids = torch.ones(70, 32, dtype=torch.bfloat16), torch.tensor(10.0), torch.zeros(70, dtype=torch.int64)
    limit, nothing = torch.zeros(70), (None, None)
    terms, powers = [ROWS | NEGATIVES, ROWS | SAME], [1.0, 1.0]
    lse, positive, _ = chunked.contrast(q.float(), None, scale, ids, None, *nothing, terms, powers, 2, True, False)
    chunked.contrast_backward(
        lse, positive, q, None, scale, ids, None, *nothing, lse, terms, powers, 2, False, True, False
    )
    many, powers = [ROWS | NEGATIVES, ROWS | SAME, ROWS | NEGATIVES, COLUMNS | NEGATIVES, COLUMNS | SAME], [1.0] * 5
    arguments = (q, q, scale, ids, ids, limit, limit)
    lse, positive, _ = chunked.contrast(*arguments, many, powers, 2, True, True)
    chunked.contrast_backward(lse, positive, *arguments, lse, many, powers, 2, True, True, True)
    assert_shipped(launches, "sum_terms", "merge", "weigh")


def test_other_functions_launch_what_was_inspected(launches: dict[str, list[Any]]) -> None:
    scale, ids, row = torch.tensor(10.0), torch.zeros(70, dtype=torch.int64), torch.ones(70)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q = torch.ones(70, 32, dtype=dtype)
        for known in (None, ids) if dtype == torch.bfloat16 else (None,):
            for gradient in (False, True):
                chunked.sigmoid_contrast(q, q, scale, scale, known, known, row, row, gradient, True, True)
            for count in (1, 50, 70):
                chunked.neighbours(q, None, count, known, known)
        chunked.hardest(q, ids, row)
        for flag in (False, True):
            chunked.triplets(q, ids, 0.2, flag, flag)
            chunked.triplets_backward(row, q, ids, 0.2, flag, flag)
    assert_shipped(launches, "sigmoid", "insert", "pack", "extremes", "distances", "row_triplets")


def test_every_size_is_known() -> None:
    names = {name for job in aot.chunk_jobs() for name in job.kernel.arg_names}
    assert set(chunked_kernels.SIZES) <= names
