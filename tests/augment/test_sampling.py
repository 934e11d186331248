"""Random numbers that batch, worker and rank do not change; and torchvision's distributions."""

import dataclasses

import numpy as np
import pytest
import torch

from pyssl_fast import use_backend
from pyssl_fast.augment import Recipe, sampling, simclr
from pyssl_fast.augment.parameters import FIELDS

v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is not installed")
stats = pytest.importorskip("scipy.stats", reason="scipy, whose tests of distributions these are, is not installed")

N = 4000
RECIPE = Recipe(
    size=(32, 32), jitter=0.8, brightness=0.4, contrast=1.3, saturation=0.2, hue=0.1, blur=0.5, grey=0.2, turns=True
)
LEAST_P = 1e-3  # of each test; the seeds are fixed


def test_uniform_equals_unsigned_arithmetic():
    index = np.array([0, 1, 2**62, 2**63 - 1])
    got = sampling.uniform(2, index, seed=7, epoch=3, view=1)
    mask, step = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    for row, i in enumerate(index.tolist()):
        for draw in range(2):
            state = mix((7 + step) & mask)
            for counter in (3, i, 1, draw):
                state = mix((state + (counter + 1) * step) & mask)
            assert got[row, draw].item() == (state >> 11) * 2.0**-53


def test_uniform_is_uniform_and_counters_are_independent():
    u = sampling.uniform(8, np.arange(N), seed=0)
    assert u.min() >= 0 and u.max() < 1
    for k in range(8):
        assert stats.kstest(u[:, k], "uniform").pvalue > LEAST_P
    others = [
        sampling.uniform(8, np.arange(N), seed=1),
        sampling.uniform(8, np.arange(N), seed=0, epoch=1),
        sampling.uniform(8, np.arange(N), seed=0, view=1),
        sampling.uniform(8, np.arange(1, N + 1), seed=0),
    ]
    columns = np.concatenate([u, *others], 1).T
    off = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(off).max() < 5 / N**0.5


def test_sample_independent_of_batch_split():
    sizes = torch.randint(20, 300, (60, 2), generator=torch.Generator().manual_seed(1))
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:60]
    whole = RECIPE.sample(sizes, seed=5, epoch=2, index=index, view=1)
    for part in (slice(0, 1), slice(1, 17), slice(17, 60)):
        some = RECIPE.sample(sizes[part], seed=5, epoch=2, index=index[part], view=1)
        for name in FIELDS:
            assert torch.equal(getattr(whole, name)[part], getattr(some, name)), name
    every_second = RECIPE.sample(sizes[::2], seed=5, epoch=2, index=index[::2], view=1)
    assert all(torch.equal(getattr(whole, name)[::2], getattr(every_second, name)) for name in FIELDS)


def test_a_sample_has_no_negative_number():
    with pytest.raises(ValueError, match="index must be 0 or more; got -1"):
        RECIPE.sample([(20, 20)] * 2, seed=0, index=torch.tensor([3, -1]))


def test_sample_generator_gives_the_seed():
    def draw(seed):
        return simclr(32).sample([(40, 40)] * 8, torch.Generator().manual_seed(seed))

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0].factors, again[0].factors)
    assert not torch.equal(first[0].factors, other[0].factors)
    assert not torch.equal(first[0].factors, first[1].factors)


@pytest.mark.parametrize("height, width", [(100, 160), (20, 200), (200, 20), (7, 5)])
def test_crop_distribution_equals_torchvision(height, width):
    box = RECIPE.sample([(height, width)] * N, seed=11).box
    torch.manual_seed(3)
    transform, image = v2.RandomResizedCrop(32), torch.empty(3, height, width)
    drawn = [transform.make_params([image]) for _ in range(N)]
    theirs = torch.tensor([[x[k] for k in ("top", "left", "height", "width")] for x in drawn])
    for k in range(4):
        assert stats.ks_2samp(box[:, k].numpy(), theirs[:, k].numpy(), method="asymp").pvalue > LEAST_P, k
    area = [x[:, 2].mul(x[:, 3]).numpy() for x in (box, theirs)]
    assert stats.ks_2samp(*area, method="asymp").pvalue > LEAST_P


@pytest.mark.parametrize(
    "height, width, expected", [(2, 100, (0, 48, 2, 3)), (100, 2, (48, 0, 3, 2)), (1, 1, (0, 0, 1, 1))]
)
def test_crop_falls_back_to_the_middle(height, width, expected):
    u = np.full((1, 22), 0.999)
    box = sampling.resized_crop(u, np.array([[height, width]]), (1.0, 1.0), (3 / 4, 4 / 3))
    assert tuple(box[0].tolist()) == expected


def test_jitter_distribution_equals_torchvision():
    p = RECIPE.sample([(10, 10)] * N, seed=12)
    torch.manual_seed(4)
    transform = v2.ColorJitter(0.4, 1.3, 0.2, 0.1)
    theirs = [transform.make_params([]) for _ in range(N)]
    for k, name in enumerate(("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")):
        assert stats.ks_2samp(p.factors[:, k].numpy(), [x[name] for x in theirs]).pvalue > LEAST_P, name
    codes = p.order @ torch.tensor([64, 16, 4, 1])
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > LEAST_P


def test_probabilities():
    p = RECIPE.sample([(10, 10)] * N, seed=13)
    for mask, probability in (
        (p.jitter[:, 0], 0.8),
        (p.sigma > 0, 0.5),
        (p.grey, 0.2),
        (p.turns == 3, 0.25),
        (p.solarize, 0),
    ):
        assert stats.binomtest(int(mask.sum()), N, probability).pvalue > LEAST_P
    assert stats.kstest(p.sigma[p.sigma > 0].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > LEAST_P


def test_erase_distribution_equals_torchvision():
    erase = Recipe(size=(40, 30), erase=1.0).sample([(50, 50)] * N, seed=14).erase
    torch.manual_seed(5)
    transform, image = v2.RandomErasing(p=1.0), torch.empty(3, 40, 30)
    drawn = [transform.make_params([image]) for _ in range(N)]
    theirs = torch.tensor([[x[k] for k in "ijhw"] for x in drawn])
    for k in range(4):
        assert stats.ks_2samp(erase[:, k].numpy(), theirs[:, k].numpy(), method="asymp").pvalue > LEAST_P, k


def test_kernel_draws_what_the_twin_draws():
    everything = Recipe(
        *((40, 30), (0.05, 0.9), (0.5, 2.5)),
        **{name: 0.5 for name in ("horizontal_flip", "affine", "jitter", "grey", "blur", "solarize", "erase")},
        **{name: 0.3 for name in ("vertical_flip", "invert", "posterize", "threshold", "brightness", "saturation")},
        **{
            "degrees": 20,
            "translate": (0.1, 0.3),
            "zoom": (0.5, 2),
            "shear": 9,
            "contrast": 1.5,
            "hue": 0.2,
            "bits": 3,
        },
    )
    sizes = torch.randint(1, 600, (N, 2), generator=torch.Generator().manual_seed(0))
    for recipe in (everything, dataclasses.replace(everything, size=(32, 32), turns=True)):
        ours = recipe.sample(sizes, seed=2**62 + 5, epoch=3, index=torch.arange(N) * 7919, view=2)
        with use_backend("reference"):
            theirs = recipe.sample(sizes, seed=2**62 + 5, epoch=3, index=torch.arange(N) * 7919, view=2)
        for name in FIELDS:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_affine_distribution_equals_torchvision():
    moves = {"degrees": 25.0, "translate": (0.15, 0.2), "shear": 20.0}
    p = Recipe(size=(40, 30), affine=1.0, zoom=(0.6, 1.3), **moves).sample([(50, 50)] * N, seed=15)
    torch.manual_seed(6)
    transform = v2.RandomAffine(scale=(0.6, 1.3), **moves)
    drawn = [transform.make_params([torch.empty(3, 40, 30)]) for _ in range(N)]
    ours = (-p.angle, p.zoom, *p.translate.unbind(1), *p.shear.unbind(1))
    theirs = zip(*[(x["angle"], x["scale"], *x["translate"], *x["shear"]) for x in drawn], strict=True)
    for k, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert stats.ks_2samp(x.numpy(), y, method="asymp").pvalue > LEAST_P, k


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seed": -1}, "seed must be 0 or more; got -1"),
        ({"seed": 1, "epoch": -1}, "epoch must be 0 or more"),
        ({"seed": 2**63}, "seed must be less than"),
        ({"seed": 1, "index": torch.arange(3)}, r"index must be a Tensor \[2\]"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
    ],
)
def test_sample_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RECIPE.sample([(4, 4)] * 2, **arguments)


@pytest.mark.parametrize("sizes", [[], [(0, 4)], [(4, 4, 4)]])
def test_sample_bad_sizes(sizes):
    with pytest.raises(ValueError, match="sizes must"):
        RECIPE.sample(sizes, seed=1)
