"""NT-Xent's C++ kernels: every instruction set against the float64 twin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu import similarity
from tests.contract import assert_within_contract
from tests.kernels.nt_xent_cases import assert_like_the_twin, embeddings, gradients, run, twin

# samples, views, dim. Blocks are 96, 192 (1,536 rows and more) or 384 rows (6,144 and more), panels 8, 24 or 48 wide.
SHAPES = {
    "one sample": (1, 2, 5),
    "one sample, three views": (1, 3, 5),
    "one column": (9, 2, 1),
    "two rows a view": (2, 2, 3),
    "block edge - 2": (47, 2, 47),
    "block edge": (48, 2, 48),
    "block edge + 2": (49, 2, 49),
    "three blocks, odd": (141, 2, 33),
    "three views": (101, 3, 95),
    "many views": (30, 7, 16),
    "samples fewer than a block holds": (20, 12, 64),
    "wide": (70, 2, 517),
    "edge of the larger blocks": (768, 2, 31),
    "past the edge of the larger blocks": (769, 2, 32),
    "very wide": (3, 2, 5003),
}
SMALL = ("one sample", "one column", "block edge + 2", "three views", "wide")
LARGE = "past the edge of the larger blocks"
# From 0.025 on one bound serves all rows; below it each has a running maximum.
TEMPERATURES = (0.5, 0.07, 0.025, 0.02499, 0.005, -0.3)


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_keeps_the_contract(isa: str, shape: tuple[int, int, int], temperature: float) -> None:
    samples, views, dim = shape
    assert_like_the_twin(similarity, embeddings(samples, views, dim), temperature, views)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", (0.5, 0.05))
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_keeps_the_contract(isa: str, name: str, temperature: float, dtype: torch.dtype) -> None:
    samples, views, dim = SHAPES[name]
    assert_like_the_twin(similarity, embeddings(samples, views, dim, dtype), temperature, views)


@pytest.mark.parametrize(
    ("precision", "like"), [("high", torch.float16), ("medium", torch.bfloat16)], indirect=["precision"]
)
@pytest.mark.parametrize(
    "name", ["one sample", "one column", "block edge + 2", "three views", "wide", "many views", LARGE]
)
def test_lower_float32_precision_is_no_worse_than_the_half_it_resembles(
    isa: str, name: str, precision: str, like: torch.dtype
) -> None:
    samples, views, dim = SHAPES[name]
    z, scale = embeddings(samples, views, dim), torch.tensor(10.0)
    g = gradients(z.shape[0])
    ours, truth = run(similarity, z, scale, views, g), twin(z, scale, views, g, torch.float64)
    eager = twin(z, scale, views, g, like)
    for what, mine, true, theirs in zip(("nll", "grad_z", "grad_scale"), ours, truth, eager, strict=True):
        assert_within_contract(mine, true, theirs, like, f"{what}, {precision}")
        if precision == "high" and what != "grad_scale":  # 16 bits of mantissa; a sum over the rows may cancel
            assert (mine - true).abs().max() <= 1e-5 * true.abs().max() + 1e-12, what


@pytest.mark.skipif("amx" not in _cpu.isas(), reason="the machine has no AMX")
@pytest.mark.parametrize("isa", ["amx"], indirect=True)
def test_each_precision_has_arithmetic_of_its_own(isa: str) -> None:
    before = torch.get_float32_matmul_precision()
    z, results = embeddings(100, 2, 40), []
    try:
        for name in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(name)
            results.append(similarity.nt_xent(z, torch.tensor(10.0), 2)[0])
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_a_large_block_edge_keeps_the_contract() -> None:
    z = embeddings(3073, 2, 17)  # 6,146 rows: blocks of 384
    assert_like_the_twin(similarity, z, 0.1, 2)


def test_a_batch_told_apart_loses_no_digits() -> None:
    # The loss, 1e-8 and less, is what the negatives hold beside the positive: plain float32 rounds it to 0.
    z = torch.eye(40).repeat(2, 1)
    nll, _, _ = similarity.nt_xent(z, torch.tensor(25.0), 2)
    truth = (78 * torch.tensor(-25.0, dtype=torch.float64).exp()).log1p()
    torch.testing.assert_close(nll.double(), truth.expand(80), rtol=1e-6, atol=0)


def test_rows_may_be_strided(isa: str) -> None:
    z = embeddings(50, 2, 30)
    expected = run(similarity, z, torch.tensor(5.0), 2, gradients(100))
    wide = torch.zeros(100, 64)
    wide[:, 3:33] = z
    for strided in (wide[:, 3:33], z.T.contiguous().T, torch.stack([z, z], dim=2)[:, :, 1]):
        assert strided.stride() != z.stride()
        for ours, want in zip(run(similarity, strided, torch.tensor(5.0), 2, gradients(100)), expected, strict=True):
            assert torch.equal(ours, want)


def test_gradient_of_nll_may_be_expanded(isa: str) -> None:
    z, scale = embeddings(30, 2, 12), torch.tensor(5.0)
    expanded, full = torch.tensor(0.3).expand(60), torch.full((60,), 0.3)
    for ours, want in zip(run(similarity, z, scale, 2, expanded), run(similarity, z, scale, 2, full), strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"], indirect=True)
@pytest.mark.parametrize("scale", [4.0, 60.0], ids=["bound", "running maximum"])
def test_bits_do_not_depend_on_the_thread_count(isa: str, precision: str, scale: float) -> None:
    z, g = embeddings(407, 2, 40), gradients(814)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            results.append(run(similarity, z, torch.tensor(scale), 2, g))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("size", [1e-8, 1e15, 1e30])
def test_row_lengths_do_not_matter(isa: str, size: float, temperature: float) -> None:
    """Beside the twin on rows of length 1: the loss is the same, a row's gradient goes with its inverse length.

    On the rows as they are plain float32 overflows, and would allow any error.
    """
    z = embeddings(40, 2, 9)
    z[::3] *= size
    length = z.double().norm(dim=1, keepdim=True)
    scale, g = torch.tensor(1 / temperature), gradients(80)
    nll, grad_z, grad_scale = run(similarity, z, scale, 2, g)
    truth, eager = (twin(z.double() / length, scale, 2, g, dtype) for dtype in (torch.float64, torch.float32))
    ours = (nll, grad_z.double() * length, grad_scale)
    for what, mine, true, theirs in zip(("nll", "grad_z", "grad_scale"), ours, truth, eager, strict=True):
        assert_within_contract(mine, true, theirs, torch.float32, f"{what}, rows of {size}")


def test_zero_rows_are_as_in_torch(isa: str) -> None:
    z = embeddings(30, 2, 8)
    z[[3, 33, 40]] = 0
    assert_like_the_twin(similarity, z, 0.5, 2)


@pytest.mark.parametrize("precision", ["highest", "medium"], indirect=True)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scale", [4.0, 60.0], ids=["bound", "running maximum"])
@pytest.mark.parametrize("row", [0, 130, 199])
def test_nan_travels(isa: str, precision: str, bad: float, scale: float, row: int) -> None:
    z = embeddings(100, 2, 20)
    z[row, 7] = bad
    nll, grad_z, grad_scale = run(similarity, z, torch.tensor(scale), 2, torch.ones(200))
    assert nll.isnan().all() and grad_z.isnan().all() and grad_scale.isnan()


def test_nan_in_the_gradient_travels(isa: str) -> None:
    z, g = embeddings(100, 2, 20), torch.ones(200)
    g[150] = torch.nan
    _, grad_z, grad_scale = run(similarity, z, torch.tensor(4.0), 2, g)
    assert grad_z.isnan().all() and grad_scale.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", [name for name in _cpu.isas() if name != "amx"], indirect=True)
def test_halves_are_read_and_written_as_torch_does(isa: str, dtype: torch.dtype) -> None:
    # Without bfloat16 products either dtype runs the same float32 arithmetic, so the results differ by one rounding.
    z, scale = embeddings(24, 2, 16, dtype), torch.tensor(2.0)
    for size in (1.0, 1e-6, 1e6):  # float16: normal, subnormal and infinite gradients
        g = gradients(48) * size
        half, wide = (run(similarity, x, scale, 2, g)[1] for x in (z, z.float()))
        assert torch.equal(half, wide.to(dtype))


# ---- the process around the kernels ----------------------------------------------------------------------------------


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", _cpu.isas())
def test_environment_forces_the_instruction_set(name: str) -> None:
    done = python("from pyssl_fast import _cpu; print(_cpu.isa())", PYSSL_FAST_ISA=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_instruction_set_says_what_is_usable() -> None:
    done = python("from pyssl_fast import _cpu; _cpu.isa()", PYSSL_FAST_ISA="mmx")
    assert done.returncode != 0
    assert "'mmx'" in done.stderr and "generic" in done.stderr
    with pytest.raises(ValueError, match=r"usable: .*generic"):
        _cpu.set_isa("mmx")


def test_a_forked_child_does_not_hang() -> None:
    done = python(
        """
import os, torch
from pyssl_fast.functional import nt_xent
torch.set_num_threads(2)
z0, z1 = torch.randn(500, 16), torch.randn(500, 16)
before = nt_xent(z0, z1)
if os.fork() == 0:
    os._exit(0 if torch.equal(nt_xent(z0, z1), before) else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert done.stdout.strip() == "0", done.stderr


def test_a_child_forked_after_torch_alone_does_not_hang() -> None:
    done = python(
        """
import os, torch
import pyssl_fast
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)
torch.randn(1 << 20).exp()
if os.fork() == 0:
    os._exit(0 if pyssl_fast.functional.nt_xent(torch.randn(500, 16), torch.randn(500, 16)) > 0 else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("threads", "limit_mb"), [(2, 32), (64, 48)])
def test_memory_is_linear_in_the_rows(threads: int, limit_mb: float) -> None:
    """S of 8,192 rows would take 268 MB. Gradients, scratch and the concatenated views, 16.8 MB, are counted."""
    done = python(
        f"""
import torch
from pyssl_fast.benchmark.measure import extra_peak_mb
from pyssl_fast.functional import nt_xent
torch.set_num_threads({threads})
z0, z1 = (torch.randn(4096, 128, requires_grad=True) for _ in range(2))
nt_xent(z0[:64], z1[:64]).backward()
z0.grad = z1.grad = None
print(extra_peak_mb(lambda: nt_xent(z0, z1).backward(), torch.device("cpu")))
"""
    )
    assert 12 < float(done.stdout) <= limit_mb, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_pool_with_torch() -> None:
    done = python(
        """
import torch
from pyssl_fast.functional import nt_xent
nt_xent(torch.randn(500, 16), torch.randn(500, 16))
print(len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line and ".so" in line}))
"""
    )
    assert done.stdout.strip() == "1", done.stdout + done.stderr


@pytest.mark.skipif("amx" not in _cpu.isas(), reason="the machine has no AMX")
def test_torchs_tile_products_go_on_working() -> None:
    a, b = torch.randn(256, 256, dtype=torch.bfloat16), torch.randn(256, 256, dtype=torch.bfloat16)
    before = a @ b
    similarity.nt_xent(embeddings(300, 2, 64, torch.bfloat16), torch.tensor(4.0), 2)
    assert torch.equal(a @ b, before)
