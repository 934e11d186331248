"""The similarity kernels for GPUs, compiled ahead of time for every architecture: what their machine code says."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled: run without TRITON_INTERPRET", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pyssl_fast.kernels.triton import aot, configs
from pyssl_fast.kernels.triton.similarity import rows, streamed
from tests.kernels import similarity_cases as cases
from tests.kernels.similarity_cases import COLUMNS, ROWS, SAME

each_architecture = pytest.mark.parametrize("architecture", configs.ARCHITECTURES, ids="sm_{}".format)


ALL = 90  # the architecture whose every kernel is compiled
FP16 = ("sums any D", "gradient any D")  # elsewhere it differs from bf16 in the instruction's type alone


def _is_compiled(architecture: int, job: aot.Job) -> bool:
    """Elsewhere one of what has the same tile and code: of the two directions of sigmoid the larger."""
    if architecture == ALL:
        return True
    if job.precision == "fp16":
        return job.label in FP16
    return not job.label.startswith("sigmoid, swapped")


@functools.cache
def builds(architecture: int) -> tuple[aot.Build, ...]:
    """The tiles of one architecture."""
    return tuple(aot.builds(architecture, "tiles", functools.partial(_is_compiled, architecture)))


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
    seen = set()
    for build in builds(architecture):
        assert set(build.matrix) == {aot.MATRIX[architecture][build.precision]}, build
        seen.add((re.split(" D≤| any D", build.label)[0], build.precision))
    jobs = {(re.split(" D≤| any D", job.label)[0], job.precision) for job in aot.tile_jobs(architecture)}
    assert {precision for _, precision in seen} == set(configs.KINDS)
    if architecture == ALL:
        assert seen == jobs
    else:
        assert {x for x in jobs if x[0] != "sigmoid, swapped" and x[1] != "fp16"} <= seen


@each_architecture
def test_every_product_is_whole_on_the_matrix_units(architecture: int) -> None:
    # One of the two products, or two of tf32x3's three, could fall back to plain arithmetic beside the rest unseen.
    for build in builds(architecture):
        tile = build.tile
        assert tile is not None
        depth = 8 if build.precision.startswith("tf32") else 16  # of one instruction
        dots = [(tile.block_n, tile.block_k)]  # columns, depth
        if tile.block_out:
            dots.append((tile.block_out, tile.block_n))
        fewest = 0
        for columns, chunk in dots:
            if architecture == 90:  # 64 rows, all columns, per four warps; more warps than rows share the columns
                fewest += max(1, tile.block_m // 64 * 4 // tile.warps) * chunk // depth
            elif architecture == 100:  # 128 rows, all columns, per block
                fewest += tile.block_m // 128 * chunk // depth
            else:  # 16 rows, 8 columns, per warp
                fewest += tile.block_m // 16 * columns // 8 * chunk // depth // tile.warps
        # A constant shift and a running maximum, where rows were normalised.
        branches = 2 if build.label.startswith(("sums", "gradient")) else 1
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


class Launches:
    """The launchers, up to the launch: nothing is compiled, and what would have been stands under the kernel's name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Driver:
            def get_current_device(self) -> int:
                return 99  # no real one's kernels are mixed with these

            def get_current_stream(self, device: int) -> int:
                return 0

            def get_current_target(self) -> GPUTarget:
                return GPUTarget("cuda", 80, 32)

        run = JITFunction.run

        def checked(this, *arguments, grid, warmup, **options):  # type: ignore[no-untyped-def]
            assert all(size > 0 for size in grid)
            return run(this, *arguments, grid=grid, warmup=warmup, **options)

        def keep(this, key, signature, device, constexprs, options, attrs, warmup):  # type: ignore[no-untyped-def]
            found = ASTSource(this, signature, constexprs, attrs), options.num_warps, options.num_stages
            self.bound.setdefault(this.fn.__name__, []).append(found)

        self.bound: dict[str, list[tuple[ASTSource, int, int]]] = {}
        monkeypatch.setattr(JITFunction, "run", checked)
        monkeypatch.setattr(JITFunction, "_do_compile", keep)
        monkeypatch.setattr(driver, "_active", Driver())


def differences(job: aot.Job, launched: tuple[ASTSource, int, int]) -> list[str]:
    """In what a launch is not the job that was inspected."""
    expected, (found, warps, stages) = aot.source(job), launched
    attributes = {key: value for key, value in found.attrs.items() if value}
    pairs = {
        "types": (found.signature, expected.signature),
        "constants": (found.constants, expected.constants),
        "alignment": (attributes, expected.attrs),
        "warps and stages": ((warps, stages), (job.warps, job.stages)),
    }
    return [f"{what}: {a} for {b}" for what, (a, b) in pairs.items() if a != b]


def _inspected(label: str, precision: str, depth: int) -> aot.Job:
    for job in aot.tile_jobs(80):
        name, _, limit = job.label.partition(" D≤")
        fits = (name == label and int(limit or 0) == depth) or job.label == f"{label} any D"
        if fits and job.precision == precision:
            return job
    raise LookupError(label)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_launch_runs_what_was_inspected(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    precision = configs.kind(dtype)
    scale, ids = torch.tensor(10.0), torch.zeros(300, dtype=torch.int64)
    limit, weight = torch.zeros(300, dtype=torch.float64), torch.ones(300)
    for rows_, dim in ((2, 128), (300, 128)):  # sizes get no code of their own
        z = torch.zeros(rows_, dim, dtype=dtype)
        lse, positive, _ = streamed.contrast(z, None, scale, *(None,) * 4, [ROWS], [1.0], 2, True, False)
        streamed.contrast_backward(
            lse, positive, z, None, scale, *(None,) * 4, lse, [ROWS], [1.0], 2, True, True, False
        )
    q, k = torch.zeros(300, 128, dtype=dtype), torch.zeros(300, 128, dtype=dtype)
    terms, powers = [ROWS, ROWS | SAME, COLUMNS, COLUMNS | SAME], [1.0, 1.0, 1.0, 1.5]
    given = (q, k, scale, ids, ids, limit, limit)
    lse, positive, _ = streamed.contrast(*given, terms, powers, 2, True, True)
    streamed.contrast_backward(lse, positive, *given, lse, terms, powers, 2, True, True, True)
    streamed.bank_contrast(q, k, scale, ids, ids, limit, [ROWS], [1.0], True)
    streamed.sigmoid_contrast(q, k, scale, scale, ids, ids, weight, weight, True, True, True)
    streamed.neighbours(q, k, 8, ids, ids)
    bound = launches.bound

    for name, label, which in (
        ("stream_sums", "sums", 0),
        ("stream_sums", "sums", 1),
        ("stream_sums", "sums of kinds", 2),
        ("stream_sums", "sums of kinds", 3),
        ("stream_gradient", "gradient", 0),
        ("stream_gradient", "gradient", 1),
        ("stream_gradient", "gradient of kinds", 2),
        ("stream_gradient", "gradient of kinds", 3),
        ("stream_bank", "bank", 0),
        ("stream_sigmoid", "sigmoid", 0),
        ("stream_sigmoid", "sigmoid, swapped", 1),
        ("stream_neighbours", "neighbours", 0),
    ):
        assert not differences(_inspected(label, precision, 128), bound[name][which]), label
    assert set(bound) == {job.kernel.__name__ for job in (*aot.tile_jobs(80), *aot.row_jobs())}


@pytest.mark.parametrize("layout", ["columns", "strided"])
def test_a_queue_needs_no_copy(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch)
    case = cases.Bank(rows=64, columns=4096, dim=128, layout=layout)
    inputs = cases.bank_inputs(case, torch.bfloat16)
    streamed.bank_contrast(*inputs, [ROWS], [1.0], False)
    assert "copy_rows" not in launches.bound


def test_every_integer_argument_is_known() -> None:
    names = {name for job in (*aot.tile_jobs(80), *aot.row_jobs()) for name in job.kernel.arg_names}
    assert set(rows.INTEGERS) <= names


class _Largest(TorchDispatchMode):
    """The largest tensor that is made, in elements of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = [x.nbytes // 4 for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.elements = max(self.elements, *made, 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows_", "columns"), [(512, 512), (1024, 1024), (2048, 2048), (256, 8192), (4096, 64)])
def test_partial_sums_are_of_the_inputs_size(
    rows_: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    Launches(monkeypatch)
    q, k = torch.zeros(rows_, 128, dtype=dtype), torch.zeros(columns, 128, dtype=dtype)
    scale, weight = torch.tensor(10.0), torch.ones(rows_)
    none, both = (None,) * 4, ([ROWS, COLUMNS], [1.0, 1.0], 0, True)
    with _Largest() as largest:
        streamed.contrast(q, k, scale, *none, *both, True)
        lse, positive = torch.zeros(rows_ + columns).double(), torch.zeros(0, rows_).double()
        streamed.contrast_backward(lse, positive, q, k, scale, *none, lse, *both, True, True)
        streamed.bank_contrast(q, k, scale, None, None, None, [ROWS], [1.0], True)
        streamed.sigmoid_contrast(q, k, scale, scale, None, None, weight, weight, True, True, True)
        if rows_ == columns:
            lse, alone = lse[:rows_], ([ROWS], [1.0], 0, True)
            streamed.contrast_backward(lse, positive, q, None, scale, *none, lse, *alone, True, False)
    assert largest.elements <= 4 * (rows_ + columns) * 128
