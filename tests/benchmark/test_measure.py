from __future__ import annotations

import math

import pytest
import torch

from pyssl_fast.benchmark import measure
from pyssl_fast.benchmark.measure import Side, Work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are of no interest here, and take most of the time."""
    monkeypatch.setitem(measure.PROBE_NUMBERS, "cpu", 1 << 14)


def _side(name: str, call=lambda: torch.tensor(1.0), **more) -> Side:
    return Side(name, name, call, **more)


def _run(sides: list[Side], **more) -> measure.Outcome:
    return measure.run(sides, sides, device=CPU, product=(8, 4, 8), rounds=more.pop("rounds", 2), **more)


def test_extra_peak_mb_sees_what_a_call_takes_and_frees() -> None:
    def call() -> float:
        return float(torch.ones(10_000_000).sum())  # 40 MB

    call()
    peak = measure.extra_peak_mb(call, CPU)
    if peak is None:
        pytest.skip("this system does not tell its peak memory")
    assert 39 < peak < 48


def test_extra_peak_mb_still_calls_where_it_cannot_measure(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(measure, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    called = []
    assert measure.extra_peak_mb(lambda: called.append(1), CPU) is None
    assert called == [1]


def test_interleave_runs_every_sampler_once_per_round_in_changing_order() -> None:
    seen: list[str] = []
    samplers = {name: (lambda name=name: seen.append(name)) for name in "abcdef"}
    measure.interleave(samplers, 8, 0, lambda _: None)
    rounds = ["".join(seen[start : start + 6]) for start in range(0, 48, 6)]
    assert all(sorted(order) == list("abcdef") for order in rounds)
    assert len(set(rounds)) > 1


def test_iqr_is_the_distance_between_quartiles() -> None:
    assert measure.iqr([1, 2, 3, 4, 5]) == 2
    assert measure.iqr([7]) == 0


def test_ratio_by_round_cancels_drift() -> None:
    assert measure.ratio_by_round([2, 20, 6], [1, 10, 3]) == 2


@pytest.mark.parametrize(("flops", "bytes_", "expected"), [(2e9, 1e6, (20, "operations")), (1e6, 4e9, (400, "bytes"))])
def test_floor_is_the_larger_of_operations_and_bytes(flops, bytes_, expected) -> None:
    ms, by = measure.floor_ms(Work(flops, bytes_), matmul_gflops=100, triad_gb_s=10)
    assert (round(ms, 6), by) == expected


def test_run_gives_every_side_one_sample_per_round() -> None:
    a, b = _side("a"), _side("b")
    outcome = _run([a, b], rounds=3)
    assert outcome.rounds == 3
    for side in (a, b):
        assert len(outcome.measured[side].time_ms) == len(outcome.measured[side].matmul_after_ms) == 3
    assert math.isfinite(outcome.matmul_gflops)
    assert math.isfinite(outcome.triad_gb_s)


def test_run_leaves_out_what_would_take_too_much() -> None:
    outcome = _run([_side("a"), _side("big", predicted_gb=9.0)], limit_gb=4)
    assert list(outcome.left_out) == ["big"]
    assert "9 GB" in outcome.left_out["big"]
    assert not outcome.failed


def test_run_gives_no_time_to_a_wrong_loss() -> None:
    outcome = _run([_side("a"), _side("wrong", lambda: torch.tensor(1.1), ours=True)])
    assert [side.name for side in outcome.measured] == ["a"]
    assert "wrong" in outcome.left_out["wrong"]
    assert outcome.failed == ["wrong"]


def test_run_gives_no_time_to_a_nan() -> None:
    assert "nan" in _run([_side("a"), _side("b", lambda: torch.tensor(math.nan))]).left_out["b"]


def test_run_says_why_a_side_failed() -> None:
    def call() -> torch.Tensor:
        raise RuntimeError("no room\nand many lines more")

    outcome = _run([_side("a"), _side("peer", call), _side("ours", call, ours=True)])
    assert outcome.left_out == {"peer": "failed: no room", "ours": "failed: no room"}
    assert outcome.failed == ["ours"]


@pytest.mark.parametrize(("product", "rows"), [((8, 4, 16), 8), ((1 << 10, 2, 1 << 9), 1 << 5), ((4, 2, 1 << 15), 1)])
def test_the_probe_has_the_shape_of_the_case_as_far_as_memory_allows(product, rows) -> None:
    probes = measure._Probes(CPU, product)
    assert probes.flops == 2 * rows * product[1] * product[2]
    assert probes.matmul_ms() > 0


def test_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with measure.precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_memory_of_other_processes_is_not_measured() -> None:
    here, elsewhere = _side("here"), _side("elsewhere", elsewhere=True)
    measured = _run([here, elsewhere]).measured
    assert measured[elsewhere].extra_peak_mb is None
    assert len(measured[elsewhere].time_ms) == 2
