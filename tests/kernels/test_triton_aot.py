"""The similarity kernels for GPUs, compiled ahead of time for every architecture: what their machine code says."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton", reason="torch comes without Triton on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled: run without TRITON_INTERPRET", allow_module_level=True)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pyssl_fast.kernels.triton import aot, configs, similarity

each_architecture = pytest.mark.parametrize("architecture", configs.ARCHITECTURES, ids="sm_{}".format)


@each_architecture
def test_no_kernel_spills(architecture: int) -> None:
    for build in aot.builds(architecture):
        assert (build.spilled, build.spill_instructions) == (0, 0), build
        assert build.registers <= 255, build


@each_architecture
def test_shared_memory_fits(architecture: int) -> None:
    for build in aot.builds(architecture):
        assert build.shared <= configs.SHARED_MEMORY[architecture], build


@each_architecture
def test_products_use_the_matrix_units(architecture: int) -> None:
    seen = set()
    for build in aot.builds(architecture):
        if build.tile is not None:
            assert set(build.matrix) == {aot.MATRIX[architecture][build.precision]}, build
            seen.add(build.precision)
    assert seen == set(configs.KINDS)


@each_architecture
def test_every_product_is_whole_on_the_matrix_units(architecture: int) -> None:
    # One of the two products, or two of tf32x3's three, could fall back to plain arithmetic beside the rest unseen.
    for build in aot.builds(architecture):
        tile = build.tile
        if tile is None:
            continue
        depth = 8 if build.precision.startswith("tf32") else 16  # of one instruction
        dots = [(tile.block_n, tile.block_k)]  # columns, depth
        if tile.block_out:
            dots.append((tile.block_out, tile.block_n))
        fewest = 0
        for columns, chunk in dots:
            if architecture == 90:  # 64 rows, all columns, per four warps
                fewest += tile.block_m // 64 * chunk // depth // (tile.warps // 4)
            elif architecture == 100:  # 128 rows, all columns, per block
                fewest += tile.block_m // 128 * chunk // depth
            else:  # 16 rows, 8 columns, per warp
                fewest += tile.block_m // 16 * columns // 8 * chunk // depth // tile.warps
        branches = 2  # constant shift and running maximum
        assert sum(build.matrix.values()) >= branches * fewest * (3 if build.precision == "tf32x3" else 1), build


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), 80), ((8, 6), 120), ((8, 7), 80), ((8, 9), 120), ((9, 0), 90), ((10, 0), 100), ((10, 3), 100),
     ((11, 0), 100), ((12, 0), 120), ((12, 1), 120), ((13, 0), 120)],
)  # fmt: skip
def test_nearest_architecture(capability: tuple[int, int], architecture: int) -> None:
    assert configs.nearest(capability) == architecture


def test_old_gpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"8\.0 or newer; this one has 7\.5"):
        configs.nearest((7, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [2, 8192])
def test_a_launch_runs_what_was_inspected(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # The launchers, up to the launch: argument lists, and the very specialisation that the table speaks of.
    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 80, 32)

    bound: dict[str, Any] = {}

    def compile_only(self, *arguments, grid, warmup, **options):  # type: ignore[no-untyped-def]
        assert all(size > 0 for size in grid)
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        bound[self.fn.__name__] = compiled.src
        return compiled

    run = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Driver())
    z, scale, row = torch.zeros(rows, 128, dtype=dtype), torch.tensor(10.0), torch.zeros(rows)
    similarity.nt_xent(z, scale, 2)
    similarity.nt_xent_backward(row, z, scale, row, row, 2)

    precision = configs.kind(dtype)
    assert len(bound) == 8
    for name, kernel, constants in (
        ("_stream_sums", similarity._stream_sums, configs.sums_constants(configs.sums(z), precision)),
        ("_stream_gradient", similarity._stream_gradient, configs.gradient_constants(configs.gradient(z), precision)),
    ):
        inspected = aot.source(kernel, precision, constants)
        assert bound[name].signature == inspected.signature
        assert bound[name].constants == inspected.constants
        assert {k: v for k, v in bound[name].attrs.items() if v} == inspected.attrs


def test_every_integer_argument_is_known() -> None:
    kernels = [similarity._stream_sums, similarity._stream_gradient]
    kernels += [kernel for kernel, _ in similarity.row_kernels("bf16")]
    names = {name for kernel in kernels for name in kernel.arg_names}
    assert set(similarity.INTEGERS) <= names
