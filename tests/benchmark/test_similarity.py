from __future__ import annotations

import pytest
import torch

from pyssl_fast import benchmark
from pyssl_fast.benchmark import similarity
from pyssl_fast.benchmark.similarity import Case

SHAPES = [(4, 1), (130, 7), (1030, 33)]  # the last one: more rows than a block, and a block that is not full


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_blocked_equals_the_twin(rows: int, dim: int, temperature: float) -> None:
    case = Case(rows, dim, temperature)
    results = []
    for function in (similarity.eager, similarity.blocked):
        z0, z1 = similarity.inputs(case)
        loss = function(z0, z1, temperature)
        loss.backward()
        results.append((loss, z0.grad, z1.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward", [True, False])
def test_sides_agree(dtype: torch.dtype, backward: bool) -> None:
    case = Case(64, 16, dtype=dtype, backward=backward)
    names = ["ours", "eager", "blocked", "lightly"]
    losses = {}
    for side in similarity.sides(case, names):
        with side.settings():
            losses[side.name] = float(side.call().float())
    expected = losses["eager"]
    assert losses == pytest.approx(dict.fromkeys(losses, expected), rel=2e-2 if dtype != torch.float32 else 1e-4)


def test_eager_is_measured_first_since_the_others_are_held_against_it() -> None:
    assert similarity.sides(Case(8, 4), ["blocked", "ours", "eager"])[0].name == "eager"


@pytest.mark.parametrize("name", ["ours", "eager", "blocked"])
def test_a_call_leaves_gradients_that_reset_takes_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = similarity.inputs(Case(8, 4))
    monkeypatch.setattr(similarity, "inputs", lambda case, seed: leaves)
    side = similarity.sides(Case(8, 4), [name])[0]
    with side.settings():
        side.call()
    assert all(leaf.grad is not None for leaf in leaves)
    side.reset()
    assert all(leaf.grad is None for leaf in leaves)


def test_an_instruction_set_is_forced_and_put_back() -> None:
    from pyssl_fast import _cpu as cpu

    before = cpu.isa()
    (side,) = similarity.sides(Case(8, 4), ["cpu"], ["medium"], ["generic"])
    assert (side.name, side.label) == ("cpu:medium:generic", "ours, cpu medium generic")
    with side.settings():
        assert cpu.isa() == "generic"
        side.call()
    assert cpu.isa() == before


@pytest.mark.parametrize("name", ["nonsense", "auto", ""])
def test_unknown_sides_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="unknown side"):
        similarity.sides(Case(8, 4), [name])


def test_a_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="'cuda' cannot run here"):
        similarity.sides(Case(8, 4), ["cuda"])


@pytest.mark.parametrize(
    ("arguments", "says"), [((7, 4), "rows"), ((2, 4), "rows"), ((8, 0), "dim"), ((8, 4, 0.0), "temperature")]
)
def test_bad_cases_are_errors(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Case(*arguments)


def test_dense_sides_predict_their_memory() -> None:
    names = ["eager", "compiled", "lightly", "bare", "blocked", "reference"]
    predicted = {side.name: side.predicted_gb for side in similarity.sides(Case(4096, 2), names)}
    s_gb = 4096**2 * 4 / 1e9
    assert predicted.pop("blocked") == 0
    assert all(gb >= s_gb for gb in predicted.values())


def test_the_largest_case_is_ours_alone() -> None:
    case = similarity.CASES[-1]
    assert (case.rows, case.only_ours) == (65536, True)
    small = similarity.small(case)
    assert all(side.ours for side in similarity.sides(small))


def test_work_counts_the_fewest_operations() -> None:
    gemm = 2 * 8192**2 * 128
    assert similarity.work(Case(8192, 128)).flops == 2 * gemm
    assert similarity.work(Case(8192, 128, backward=False)).flops == gemm / 2
    assert similarity.work(Case(8192, 128, dtype=torch.bfloat16)).bytes == 3 * 8192 * 128 * 2


def test_a_peer_that_cannot_take_part_says_why() -> None:
    assert "0.025" in similarity.missing(Case(8, 4, 0.01), similarity.PEERS)["blocked"]


def test_families_are_found_and_unknown_ones_named() -> None:
    assert "similarity" in benchmark.families()
    assert benchmark.family("similarity") is similarity
    for name in ("nonsense", "measure", "../similarity"):
        with pytest.raises(ValueError, match="unknown family"):
            benchmark.family(name)
