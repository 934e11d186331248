"""The covariance kernels for GPUs, compiled ahead of time for every architecture: what their machine code says."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled: run without TRITON_INTERPRET", allow_module_level=True)

import torch

from pyssl_fast.kernels.triton import aot, configs, covariance
from pyssl_fast.ops.covariance import cross_shapes, gram_shapes
from tests.kernels.test_triton_aot import Launches, _Largest, differences

each_architecture = pytest.mark.parametrize("architecture", configs.ARCHITECTURES, ids="sm_{}".format)

ALL = 90  # the architecture whose every kernel is compiled
# Of the others those that take most: weights, two views.
ELSEWHERE = {
    "tf32x3": ("AᵀA", "AAᵀ, weighted", "AᵀB, weighted", "gradient, rows", "gradient, columns", "gradient of two, rows",
               "gradient of two, columns"),
    "tf32": ("AAᵀ, weighted", "gradient of two, columns"),
    "bf16": ("AᵀB, weighted", "gradient of two, rows"),
    "fp16": (),
    "float64": ("AᵀB, weighted", "gradient of two, rows"),
}  # fmt: skip


def _is_compiled(architecture: int, job: aot.Job) -> bool:
    if job.precision.startswith("float64 of"):
        return False  # their loads alone differ
    if job.precision == "fp16":
        return architecture == ALL and job.label in ("AᵀA", "gradient, rows")
    return architecture == ALL or job.label in ELSEWHERE[job.precision]


@functools.cache
def builds(architecture: int) -> tuple[aot.Build, ...]:
    return tuple(aot.builds(architecture, "covariance", functools.partial(_is_compiled, architecture)))


@each_architecture
def test_no_kernel_spills(architecture: int) -> None:
    for build in builds(architecture):
        assert (build.spilled, build.spill_instructions) == (0, 0), build
        assert build.registers <= 255, build


@each_architecture
def test_shared_memory_fits(architecture: int) -> None:
    for build in builds(architecture):
        assert build.shared <= configs.SHARED_MEMORY[architecture], build


@each_architecture
def test_products_use_the_matrix_units(architecture: int) -> None:
    for build in builds(architecture):
        # float32's instructions, whatever goes in: without its mean it is a float32.
        expected = aot.MATRIX[architecture]["tf32"]
        if build.precision == "float64":
            expected = aot.FLOAT64.get(architecture)
        assert set(build.matrix) == ({expected} if expected else set()), build
    assert {build.precision for build in builds(architecture)} >= {"tf32x3", "tf32", "bf16", "float64"}


@each_architecture
def test_every_product_is_whole_on_the_matrix_units(architecture: int) -> None:
    # Two of tf32x3's three products could fall back to plain arithmetic beside the third unseen.
    for build in builds(architecture):
        tile = build.tile
        assert tile is not None
        if build.precision == "float64":
            continue
        columns = tile.block_n
        if architecture == 90:  # 64 rows, all columns, 8 deep, per four warps; more warps than rows share the columns
            fewest = max(1, tile.block_m // 64 * 4 // tile.warps) * tile.block_k // 8
        elif architecture == 100:  # 128 rows, all columns, 8 deep, per block
            fewest = tile.block_m // 128 * tile.block_k // 8
        else:  # 16 rows, 8 columns, 8 deep, per warp
            fewest = tile.block_m // 16 * columns // 8 * tile.block_k // 8 // tile.warps
        assert sum(build.matrix.values()) >= fewest * (3 if build.precision == "tf32x3" else 1), build


def test_no_row_kernel_spills() -> None:
    for build in aot.builds(120, "covariance rows"):
        assert build.spilled == 0 and build.registers <= 128 and build.shared <= 48 * 1024, build


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    yield Launches(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("samples", "dim"), [(256, 2048), (2048, 256)], ids=["rows", "columns"])
def test_a_launch_runs_what_was_inspected(samples: int, dim: int, dtype: torch.dtype, launches: Launches) -> None:
    x, y = torch.zeros(2, samples, 3, dim, dtype=dtype)
    double = {"dtype": torch.float64}
    gram, exact = gram_shapes(x, y)
    kept = torch.zeros(gram), torch.zeros(exact, dtype=torch.bool)
    covariance.auto_covariance(x, y, True)
    covariance.auto_covariance_backward(
        torch.zeros(2, 3, dim, **double),
        torch.zeros(2, 3, **double),
        torch.zeros((), **double),
        x,
        y,
        *kept,
        True,
        True,
    )
    x, y = x[:, 0].contiguous(), y[:, 0].contiguous()
    gram, exact = cross_shapes(x, y)
    kept = torch.zeros(gram), torch.zeros(exact, dtype=torch.bool)
    covariance.cross_correlation(x, y, 1e-5, True)
    covariance.cross_correlation_backward(
        torch.zeros(dim, **double), torch.zeros((), **double), x, y, 1e-5, *kept, True, True
    )
    known = [*aot.covariance_jobs(80), *aot.covariance_row_jobs()]
    assert set(launches.bound) == {job.kernel.__name__ for job in known} - {"sum_correlations"}
    for name, launched in launches.bound.items():
        for got in launched:
            found = [differences(job, got) for job in known if job.kernel.__name__ == name]
            assert [] in found, f"{name}: {min(found, key=len)}"


def test_scratch_is_of_the_inputs_size(launches: Launches) -> None:
    for samples, dim in ((256, 8192), (8192, 256), (1024, 1024), (64, 65536)):
        x, y = torch.zeros(2, samples, 1, dim)
        with _Largest() as largest:
            covariance.auto_covariance(x, y, True)
            covariance.cross_correlation(x[:, 0], y[:, 0], 1e-5, True)
        assert largest.elements <= 4 * x.numel()
