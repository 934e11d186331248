from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyssl_fast import backend
from pyssl_fast.benchmark import multi_tensor
from pyssl_fast.benchmark.cases import Case, inputs

SYSTEMS = {case.system.name: case.system for case in multi_tensor.CASES}
# Which of a system's lists, in the order of its inputs, a step changes; others: parameters and teacher.
WRITTEN = {"ema": [1], "ema-model": [1], "ema-bf16": [1], "ema-shadow": [1, 2], "lars": [0], "adamw": [0]}
WITH_GRADIENTS = {"lars", "adamw", "adamw-ema", "adamw-ema-clip"}


def _model() -> nn.Module:
    """Vectors, matrices, and buffers of floating point and of whole numbers."""
    return nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Linear(130, 33))


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of that model, which the cases of this size then have."""
    parameters = list(_model().parameters())
    found = len(parameters), sum(p.numel() for p in parameters)
    monkeypatch.setitem(multi_tensor.MODELS, found, _model)
    return found


def _lists(case: Case, tensors: tuple[Tensor, ...]) -> list[list[Tensor]]:
    length = case.rows + (3 if case.system.name == "ema-model" else 0)
    return multi_tensor.split(len(tensors) // length, tensors)


def _after_two_calls(case: Case, side: str) -> list[list[Tensor]]:
    tensors = inputs(case)
    with backend.use_backend(side if side in ("cpu", "reference") else "auto"):
        call = (case.system.peers[side].make if side in case.system.peers else case.system.ours)(case, *tensors)
        assert call() is None
        if case.system.name in WITH_GRADIENTS:  # below the norm that is clipped: AdamW alone does not see a mere factor
            for g, first in zip(_lists(case, tensors)[1], _lists(case, inputs(case))[1], strict=True):
                g.copy_(0.3 * first)
        assert call() is None
    return _lists(case, tensors)


@pytest.mark.parametrize("name", SYSTEMS)
def test_sides_leave_the_same_tensors(name: str, size: tuple[int, int]) -> None:
    case = Case(SYSTEMS[name], *size)
    written = WRITTEN.get(name, [0, 2])
    start = _lists(case, inputs(case))
    truth = _after_two_calls(case, "reference")
    lists = [i for i in range(len(start)) if not (name in WITH_GRADIENTS and i == 1)]  # clipping may scale gradients
    for i in lists:
        before, after = start[i], truth[i]
        assert [not torch.equal(b, a) for b, a in zip(before, after, strict=True)] == [i in written] * len(before)
    # `compiled` is `loop`, compiled; `triad` changes nothing of the case.
    for side in ("cpu", *(peer for peer in case.system.peers if peer not in ("compiled", "triad"))):
        found = _after_two_calls(case, side)
        for i in lists:
            for x, y in zip(found[i], truth[i], strict=True):
                half = x.dtype == torch.bfloat16
                torch.testing.assert_close(x, y, rtol=1e-2 if half else 1e-6, atol=0 if half else 1e-7)


def test_models_are_those_of_timm() -> None:
    import timm

    for size, name in ((multi_tensor.RESNET_50, "resnet50"), (multi_tensor.VIT_B_16, "vit_base_patch16_224")):
        ours = multi_tensor.architecture(Case(multi_tensor.EMA, *size))
        with torch.device("meta"):
            theirs = timm.create_model(name)
        for kind in ("parameters", "buffers"):
            shapes = [sorted(tuple(x.shape) for x in getattr(model, kind)()) for model in (ours, theirs)]
            assert shapes[0] == shapes[1]
        parameters = list(ours.parameters())
        assert (len(parameters), sum(p.numel() for p in parameters)) == size


@pytest.mark.parametrize(("tensors", "numbers"), [(1, 1), (3, 3), (7, 100)])
def test_other_sizes_are_of_tensors_as_equal_as_can_be(tensors: int, numbers: int) -> None:
    student, teacher = multi_tensor.split(2, inputs(Case(multi_tensor.EMA, tensors, numbers)))
    for of in (student, teacher):
        lengths = [x.numel() for x in of]
        assert (len(of), sum(lengths)) == (tensors, numbers)
        assert max(lengths) - min(lengths) <= 1


def test_the_norm_of_the_gradients_is_above_what_clipping_leaves(size: tuple[int, int]) -> None:
    _, gradients = multi_tensor.split(2, inputs(Case(multi_tensor.ADAMW_STEP, *size)))
    assert float(torch.nn.utils.get_total_norm(gradients)) > 1.5 * multi_tensor.MAX_NORM


@pytest.mark.parametrize("name", ["lars", "adamw", "adamw-ema", "adamw-ema-clip"])
def test_moments_are_there_before_the_first_call(name: str, size: tuple[int, int]) -> None:
    case = Case(SYSTEMS[name], *size)
    for make in (case.system.ours, *(peer.make for peer in case.system.peers.values())):
        tensors = inputs(case)
        start = [x.clone() for x in tensors[: case.rows]]
        make(case, *tensors)  # a first step has been made
        assert not any(map(torch.equal, start, tensors[: case.rows]))


def test_a_step_has_bytes_alone(size: tuple[int, int]) -> None:
    case = Case(multi_tensor.ADAMW_EMA, *size)
    assert (case.work.flops, case.work.bytes) == (0, 36 * size[1])
    assert (case.mode, case.backward) == ("step", False)


def test_titles_are_models_or_sizes() -> None:
    assert Case(multi_tensor.EMA, *multi_tensor.VIT_B_16).title == "ema ViT-B/16"
    assert Case(multi_tensor.EMA, 16, 4096).title == "ema 16 × 4,096"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 4), "rows of ema, its tensors, must be 1 or more; got 0"),
        ((8, 7), "dim of ema, numbers in all tensors, must be 8 or more; got 7"),
        ((2, 4, 0, None, torch.bfloat16), "dtype must be float32; got torch.bfloat16"),
    ],
)
def test_bad_cases_are_errors(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Case(multi_tensor.EMA, *arguments)


def test_small_cases_keep_the_number_of_tensors() -> None:
    for case in multi_tensor.CASES:
        small = case.small()
        assert (small.rows, small.dim) == (case.rows, 1 << 16)
