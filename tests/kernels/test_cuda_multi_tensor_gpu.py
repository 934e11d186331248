"""The multi_tensor kernels on a real GPU: the contract, CUDA graphs, and that nothing waits for the device."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

if importlib.util.find_spec("pyssl_fast._cuda") is None:
    pytest.skip("pyssl_fast._cuda is not built here: no nvcc 12.8 or newer was found", allow_module_level=True)

import torch

from pyssl_fast.kernels.cuda import multi_tensor as kernels
from tests.kernels import multi_tensor_cases as cases
from tests.kernels.multi_tensor_cases import ADAMW, BF16, DTYPES, EMA, F16, F32, LARS, check, run_clones

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
MANY = [5 + i % 9 for i in range(1500)] + [4097, 1 << 20, 3_000_001]  # more than a launch holds


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("shadow", [None, BF16], ids=str)
@pytest.mark.parametrize("student", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", DTYPES, ids=str)
def test_ema(teacher: torch.dtype, student: torch.dtype, shadow: Any, shift: int) -> None:
    check(kernels, "ema_", cases.ema(teacher, student, shadow, shift=shift, device="cuda"), EMA)


@pytest.mark.parametrize("of", [F32, BF16, F16, DTYPES], ids=str)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "shadow": BF16, "factor": torch.tensor(0.5)}], ids=str)
def test_adamw(options: dict[str, Any], shift: int, of: Any) -> None:
    check(kernels, "adamw_", cases.adamw(lambda name: of, shift=shift, device="cuda", **options), ADAMW, steps=2)


@pytest.mark.parametrize("of", [F32, BF16, F16, DTYPES], ids=str)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    "options", [{}, {"joint": True, "trust_clip": True, "nesterov": True, "shadow": BF16}], ids=str
)
def test_lars(options: dict[str, Any], shift: int, of: Any) -> None:
    check(kernels, "lars_", cases.lars(lambda name: of, shift=shift, device="cuda", **options), LARS)


def test_many_tensors_and_the_same_bits_every_run() -> None:
    for name, of, written in (
        ("ema_", cases.ema(F32, DTYPES, BF16, sizes=MANY, device="cuda"), EMA),
        ("adamw_", cases.adamw(sizes=MANY, teacher=True, device="cuda"), ADAMW),
        ("lars_", cases.lars(sizes=MANY, teacher=True, device="cuda"), LARS),
    ):
        first, second = check(kernels, name, of, written), run_clones(kernels, name, of)
        for key in written:
            assert cases.same_bits(first.get(key, []), second.get(key, [])), (name, key)
    x = cases.make(MANY, F32, device="cuda")
    truth = sum(t.double().square().sum() for t in x)
    assert abs(kernels.square_sum(x) - truth) <= 1e-13 * truth
    assert torch.equal(kernels.square_sum(x), kernels.square_sum(x))


def test_offsets_beyond_32_bits() -> None:
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free GPU memory")
    teacher, student = (torch.zeros((1 << 31) + 4099, dtype=BF16, device="cuda") for _ in range(2))
    student[-1], student[0] = 1, 2
    kernels.ema_([teacher], [student], [], 1, torch.tensor(0.5))
    assert (teacher[-1].item(), teacher[0].item(), torch.count_nonzero(teacher).item()) == (0.5, 1.0, 2)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_nothing_waits_for_the_device(found: float) -> None:
    found_inf = torch.full((), found, device="cuda")
    calls = [
        ("ema_", cases.ema(F32, BF16, BF16, device="cuda")),
        ("adamw_", cases.adamw(shadow=BF16, found_inf=found_inf, factor=found_inf + 1, device="cuda")),
        ("lars_", cases.lars(shadow=BF16, found_inf=found_inf, factor=found_inf + 1, device="cuda")),
        ("square_sum", {"tensors": cases.make(cases.SIZES, F32, device="cuda")}),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name, of in calls:
            getattr(kernels, name)(**of)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_reads_the_momentum_where_it_stands() -> None:
    of = cases.ema(F32, BF16, BF16, device="cuda")
    expected = cases.clone(of)
    run_clones(kernels, "ema_", of)  # before capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.ema_(**of)
    for momentum in (0.9, 0.5, 0.0):
        of["momentum"].fill_(momentum)
        graph.replay()
        expected["momentum"].fill_(momentum)
        kernels.ema_(**expected)
        for key in EMA:
            assert cases.same_bits(of[key], expected[key]), momentum


def test_it_runs_on_the_stream_and_device_of_its_tensors() -> None:
    device = torch.cuda.device_count() - 1
    before = torch.cuda.current_device()
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        of = cases.ema(F32, F32, None, 0.0, device=f"cuda:{device}")
        torch.cuda._sleep(100_000_000)  # what is on another stream would overtake this
        of["student"][5].fill_(3.0)
        kernels.ema_(**of)
    stream.synchronize()
    assert bool((of["teacher"][5] == 3.0).all())
    assert torch.cuda.current_device() == before
