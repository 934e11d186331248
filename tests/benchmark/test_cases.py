from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyssl_fast import benchmark
from pyssl_fast.benchmark import cases, similarity
from pyssl_fast.benchmark.cases import Case

NT_XENT, MOCO, CLIP = similarity.NT_XENT, similarity.MOCO, similarity.CLIP
CPU = torch.device("cpu")


def _configure(chosen: list[Case], **more) -> list[Case]:
    settings = {"temperature": None, "dtype": torch.float32, "device": CPU, "mode": "forward+backward"}
    return cases.configure(chosen, **{**settings, **more})


def _bank_case() -> Case:
    return next(case for case in similarity.CASES if case.system is MOCO)


# ---- a case --------------------------------------------------------------------------------------------------------


def test_titles_are_sizes_and_unusual_temperatures() -> None:
    assert Case(NT_XENT, 2048, 128).title == "nt-xent 2,048 × 128"
    assert Case(CLIP, 8, 4, temperature=0.01).title == "clip 8 × 8 × 4, τ = 0.01"
    assert Case(MOCO, 8, 4, 1024).title == "moco 8 × 1,024 × 4"


@pytest.mark.parametrize(
    ("system", "arguments", "says"),
    [
        (NT_XENT, (7, 4), "rows of nt-xent must be 2 views of 2 samples or more; got 7"),
        (NT_XENT, (2, 4), "rows of nt-xent"),
        (CLIP, (1, 4), "rows of clip must be 1 view of 2 samples or more; got 1"),
        (NT_XENT, (8, 0), "dim must be 1 or more; got 0"),
        (MOCO, (8, 4, 7), "columns of moco must be as many as its 8 rows or more; got 7"),
        (NT_XENT, (8, 4, 0, 0.0), "temperature"),
    ],
)
def test_bad_cases_are_errors(system, arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Case(system, *arguments)


def test_a_system_without_temperature_or_gradient_has_none() -> None:
    assert Case(similarity.KOLEO, 8, 4, temperature=0.3).temperature is None
    look_up = Case(similarity.NNCLR, 8, 4, 16)
    assert (look_up.backward, look_up.mode) == (False, "forward")


def test_work_counts_the_fewest_operations() -> None:
    gemm = 2 * 8192**2 * 128
    assert Case(NT_XENT, 8192, 128).work.flops == 2 * gemm
    assert Case(NT_XENT, 8192, 128, backward=False).work.flops == gemm / 2
    assert Case(CLIP, 8192, 128).work.flops == 4 * gemm
    assert Case(similarity.SIGLIP, 8192, 128).work.flops == 3 * gemm
    assert Case(MOCO, 256, 128, 65536).work.flops == 2 * 2 * 256 * 65536 * 128
    assert Case(similarity.NNCLR, 256, 128, 65536).work.flops == 2 * 256 * 65536 * 128


def test_work_counts_every_input_and_every_gradient_once() -> None:
    row = 128 * 2
    assert Case(NT_XENT, 8192, 128, dtype=torch.bfloat16).work.bytes == 2 * 8192 * row
    assert Case(CLIP, 8192, 128, dtype=torch.bfloat16).work.bytes == 4 * 8192 * row
    assert Case(MOCO, 256, 128, 65536, dtype=torch.bfloat16).work.bytes == (256 + 65536 + 256) * row
    assert Case(NT_XENT, 8192, 128, dtype=torch.bfloat16, backward=False).work.bytes == 8192 * row


# ---- choosing ------------------------------------------------------------------------------------------------------


def test_all_cases_are_chosen_without_a_name() -> None:
    assert cases.select(similarity.CASES) == list(similarity.CASES)
    titles = [case.title for case in similarity.CASES]
    assert len(set(titles)) == len(titles)


def test_sizes_without_a_name_are_of_nt_xent() -> None:
    chosen = cases.select(similarity.CASES, rows=[512, 8192])
    assert [case.title for case in chosen] == ["nt-xent 512 × 128", "nt-xent 8,192 × 128"]
    assert not chosen[0].targets
    assert chosen[1].targets["eager"] == 6  # a size that stands in the table
    assert [case.rows for case in cases.select(similarity.CASES, dims=[64])] == [2048, 8192]


def test_a_named_size_is_measured_beside_peers_even_if_the_table_leaves_them_out() -> None:
    (case,) = cases.select(similarity.CASES, rows=[65536])
    assert not case.only_ours


def test_named_cases_keep_their_temperatures_and_banks() -> None:
    chosen = cases.select(similarity.CASES, ["clip", "moco"], rows=[64])
    assert [case.temperature for case in chosen] == [0.07, 0.01, 0.07]
    assert chosen[2].columns == 65536
    (case,) = cases.select(similarity.CASES, ["moco"], columns=1024)
    assert (case.rows, case.columns) == (256, 1024)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"names": ["nonsense"]}, "unknown case 'nonsense'; there are: nt-xent, clip"), ({"columns": 9}, "bank")],
)
def test_unknown_choices_are_errors(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cases.select(similarity.CASES, **arguments)


def test_targets_stay_where_they_were_stated() -> None:
    all_cases = list(similarity.CASES)
    assert [case.targets for case in _configure(all_cases)] == [case.targets for case in all_cases]
    views = list(benchmark.family("augment").CASES)
    assert any(case.narrow for case in _configure(views))
    assert any(case.target_rate for case in _configure(views))
    on_a_gpu = _configure(views, device=torch.device("cuda"))
    assert not any(case.targets or case.narrow or case.target_rate for case in on_a_gpu)
    for changed in ({"dtype": torch.bfloat16}, {"device": torch.device("cuda")}):
        assert not any(case.targets or case.target_mb for case in _configure(all_cases, **changed))
    forward = _configure(all_cases, mode="forward")
    assert {case.system.name for case in forward if case.targets} == {"nnclr", "nnclr-unit", "mean-shift"}
    assert not any(case.targets for case in _configure(cases.select(all_cases, ["moco"]), temperature=0.5))


def test_cases_that_a_temperature_makes_the_same_are_measured_once() -> None:
    assert len(_configure(cases.select(similarity.CASES, ["clip"]), temperature=0.2)) == 1


def test_inputs_are_the_same_for_the_same_seed() -> None:
    case = replace(_bank_case(), rows=8, columns=16)
    for one, same, other in zip(*(cases.inputs(case, seed) for seed in (1, 1, 2)), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


# ---- sides ---------------------------------------------------------------------------------------------------------


def test_the_first_peer_is_measured_first_since_the_others_are_held_against_it() -> None:
    assert cases.sides(Case(NT_XENT, 8, 4), ["blocked", "ours", "eager"])[0].name == "eager"


@pytest.mark.parametrize("name", ["ours", "eager", "blocked"])
def test_a_call_leaves_gradients_that_reset_takes_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = cases.inputs(Case(NT_XENT, 8, 4))
    monkeypatch.setattr(cases, "inputs", lambda case, seed: leaves)
    side = cases.sides(Case(NT_XENT, 8, 4), [name])[0]
    with side.settings():
        side.call()
    assert all(leaf.grad is not None for leaf in leaves)
    side.reset()
    assert all(leaf.grad is None for leaf in leaves)


def test_an_instruction_set_is_forced_and_put_back() -> None:
    from pyssl_fast import _cpu as cpu

    before = cpu.isa()
    (side,) = cases.sides(Case(NT_XENT, 8, 4), ["cpu"], ["medium"], ["generic"])
    assert (side.name, side.label) == ("cpu:medium:generic", "ours, cpu medium generic")
    assert side.isa == "generic"
    assert cases.sides(Case(NT_XENT, 8, 4), ["cpu"])[0].isa == before
    with side.settings():
        assert cpu.isa() == "generic"
        side.call()
    assert cpu.isa() == before


@pytest.mark.parametrize("name", ["nonsense", "auto", "", "open_clip"])
def test_unknown_sides_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="unknown side"):
        cases.sides(Case(NT_XENT, 8, 4), [name])


def test_another_systems_peer_takes_no_part() -> None:
    sides = cases.sides(Case(NT_XENT, 8, 4), ["eager", "open_clip"], peers=["open_clip"])
    assert [side.name for side in sides] == ["eager"]


def test_a_backend_that_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="'cuda' cannot run here"):
        cases.sides(Case(NT_XENT, 8, 4), ["cuda"])


def test_dense_sides_predict_their_memory() -> None:
    names = ["eager", "compiled", "lightly", "bare", "blocked", "reference"]
    predicted = {side.name: side.predicted_gb for side in cases.sides(Case(NT_XENT, 4096, 2), names)}
    s_gb = 4096**2 * 4 / 1e9
    assert predicted.pop("blocked") == 0
    assert all(gb >= s_gb for gb in predicted.values())


def test_a_peer_that_cannot_take_part_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0.025" in cases.missing(Case(NT_XENT, 8, 4, temperature=0.01))["blocked"]
    case = Case(CLIP, 8, 4)
    for package in ("a_package_that_is_not_there", "not_there.inner"):
        monkeypatch.setitem(cases.PACKAGES, "open_clip", package)
        assert cases.missing(case, ["open_clip", "pml"]) == {"open_clip": f"{package} is not installed"}
        assert all(side.ours for side in cases.sides(case))


def test_families_are_found_and_unknown_ones_named() -> None:
    assert benchmark.families() == ["augment", "covariance", "multi_tensor", "similarity"]
    assert benchmark.family("similarity") is similarity
    for name in ("nonsense", "measure", "cases", "../similarity"):
        with pytest.raises(ValueError, match="unknown family"):
            benchmark.family(name)
