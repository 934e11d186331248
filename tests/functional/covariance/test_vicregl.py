from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import VICRegLLoss as LightlyVICRegLLoss
from torch import Tensor

from pyssl_fast.functional import vicregl
from tests.functional.covariance.cases import views
from tests.functional.similarity.peers import assert_like_peer

GRID, SMALL = (3, 4), (2, 2)


def crops(global_views: int, local_views: int, samples: int = 6) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of every view global features [B, 7], local features [B, H, W, 5], and grids [B, H, W, 2] full of ties."""
    count = global_views + local_views
    sizes = [GRID] * global_views + [SMALL] * local_views
    whole = list(views(samples, 7, count=count))
    parts = [views(samples, *size, 5, count=1, seed=9 * number)[0] for number, size in enumerate(sizes)]
    grids = []
    for number, (height, width) in enumerate(sizes):
        place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()
        flipped = place.flip(1) if number % 2 else place
        grids.append((flipped * (2 if number < global_views else 1) + number).expand(samples, -1, -1, -1))
    return whole, parts, grids


def called(loss, global_views: int, grids: list[Tensor]):
    """loss as a function of the global and local features alone."""

    def call(*features: Tensor) -> Tensor:
        half = len(features) // 2
        pairs = list(zip(features[:half], features[half:], strict=True))
        places = [grid.to(features[0].dtype) for grid in grids]
        arguments = [pairs[:global_views], places[:global_views]]
        if len(pairs) > global_views:
            arguments += [pairs[global_views:], places[global_views:]]
        return loss(*arguments).view(())

    return call


SETTINGS = {
    "defaults": {},
    "weights": {"lambda_param": 1.0, "mu_param": 2.0, "nu_param": 3.0, "alpha": 0.3, "eps": 0.01},
    "more matches first": {"num_matches": (6, 3)},
    "as many": {"num_matches": (2, 2)},
    "fewer first": {"num_matches": (1, 5)},
    "all": {"num_matches": (-1, -1)},
    "global alone": {"alpha": 1.0},
    "local alone": {"alpha": 0.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("global_views", "local_views"), [(2, 0), (1, 1), (2, 3), (3, 1)])
def test_value_and_gradients_are_lightlys(global_views: int, local_views: int, settings, backend: str) -> None:
    whole, parts, grids = crops(global_views, local_views)
    ours = called(lambda *views: vicregl(*views, **settings), global_views, grids)
    theirs = called(LightlyVICRegLLoss(**settings), global_views, grids)
    assert_like_peer(ours, theirs, (*whole, *parts))


def test_gradients_are_the_differences() -> None:
    whole, parts, grids = crops(2, 1, 4)
    inputs = [x.double().requires_grad_() for x in (*whole, *parts)]
    call = called(lambda *views: vicregl(*views, num_matches=(5, 3)), 2, grids)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    whole, parts, grids = crops(2, 1)
    inputs = [x.to(dtype).requires_grad_() for x in (*whole, *parts)]
    call = called(vicregl, 2, grids)
    loss = call(*inputs)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in inputs)
    torch.testing.assert_close(loss.float(), call(*whole, *parts), rtol=0.05, atol=0.05)


def test_compiles_once_for_any_batch_and_runs_under_autocast() -> None:
    def loss(grids: list[Tensor], *features: Tensor) -> Tensor:
        return called(lambda *views: vicregl(*views, num_matches=(5, 3)), 1, grids)(*features)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples, stance in ((9, "default"), (12, "fail_on_recompile")):
        whole, parts, grids = crops(1, 1, samples)
        inputs = [x.requires_grad_() for x in (*whole, *parts)]
        with torch.compiler.set_stance(stance):
            ours = compiled(grids, *inputs)
        eager = loss(grids, *inputs)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
        mine, theirs = torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            half = loss(grids, *inputs)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, eager, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("which", [0, 2], ids=["global", "local"])
def test_not_a_number_comes_out(which: int, backend: str) -> None:
    whole, parts, grids = crops(2, 0)
    inputs = [x.clone() for x in (*whole, *parts)]
    inputs[which].view(6, -1)[1, 2] = torch.nan
    assert called(vicregl, 2, grids)(*inputs).isnan()


WHOLE, PARTS, GRIDS = crops(2, 1)
PAIRS = list(zip(WHOLE, PARTS, strict=True))
BAD = {
    "no list": ((WHOLE[0], GRIDS[:2]), {}, TypeError, "global_view_features must be a list; got Tensor"),
    "no pair": ((WHOLE[:2], GRIDS[:2]), {}, TypeError, r"global_view_features\[0\] must be a pair"),
    "lengths": ((PAIRS[:2], GRIDS[:1]), {}, ValueError, "must have one length; got 2 and 1"),
    "one view": ((PAIRS[:1], GRIDS[:1]), {}, ValueError, "a global view and another view; got 1 global and 0 local"),
    "no view": (([], []), {}, ValueError, "a global view and another view; got 0 global and 0 local"),
    "no local grids": ((PAIRS[:2], GRIDS[:2], PAIRS[2:]), {}, ValueError, "come together; local_view_grids is None"),
    "no local features": (
        (PAIRS[:2], GRIDS[:2], None, GRIDS[2:]),
        {},
        ValueError,
        "come together; local_view_features is None",
    ),
    "global shape": (
        ([PAIRS[0], (WHOLE[1][:, :3], PARTS[1])], GRIDS[:2]),
        {},
        ValueError,
        r"global_view_features\[1\]\[0\] must have global_view_features\[0\]\[0\]'s shape \[6, 7\]; got \[6, 3\]",
    ),
    "local batch": (
        ([(WHOLE[0], PARTS[0][:3]), PAIRS[1]], GRIDS[:2]),
        {},
        ValueError,
        r"global_view_features\[0\]\[1\] must have shape \[6, 3, 4, 5\]; got \[3, 3, 4, 5\]",
    ),
    "local length": (
        (PAIRS[:2], GRIDS[:2], [(WHOLE[2], PARTS[2][..., :2])], GRIDS[2:]),
        {},
        ValueError,
        r"local_view_features\[0\]\[1\] must have rows of global_view_features\[0\]\[1\]'s length 5; got",
    ),
    "local dimensions": (
        ([(WHOLE[0], PARTS[0].flatten(1, 2)), PAIRS[1]], GRIDS[:2]),
        {},
        ValueError,
        r"global_view_features\[0\]\[1\] must have shape \[B, H, W, D\]; got \[6, 12, 5\]",
    ),
    "grid": (
        (PAIRS[:2], [GRIDS[0], GRIDS[2]]),
        {},
        ValueError,
        r"global_view_grids\[1\] must have shape \[6, 3, 4, 2\]; got \[6, 2, 2, 2\]",
    ),
    "one sample": (
        ([(w[:1], p[:1]) for w, p in PAIRS[:2]], [g[:1] for g in GRIDS[:2]]),
        {},
        ValueError,
        r"global_view_features\[0\]\[0\] must have two rows or more",
    ),
    "alpha": ((PAIRS[:2], GRIDS[:2]), {"alpha": 1.5}, ValueError, r"alpha must be 0 to 1; got 1\.5"),
    "mu NaN": ((PAIRS[:2], GRIDS[:2]), {"mu_param": math.nan}, ValueError, "mu_param must be"),
    "matches": ((PAIRS[:2], GRIDS[:2]), {"num_matches": (0, 4)}, ValueError, r"num_matches\[0\] must be 1 or more"),
    "one count": ((PAIRS[:2], GRIDS[:2]), {"num_matches": (4,)}, ValueError, r"num_matches must be two numbers"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, options, error, message = case
    with pytest.raises(error, match=message):
        vicregl(*arguments, **options)
