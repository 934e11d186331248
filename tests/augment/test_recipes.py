"""The papers' numbers, and how recipes meet batches."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from pyssl_fast import augment
from pyssl_fast.augment import RECIPES, Recipe, Views, apply, multi_crop, two_views

# area of the crop, flip, jitter, its strengths, grey, blur, solarize: of the recipe's different views
NUMBERS = {
    "simclr": [((0.08, 1), 0.5, 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0)],
    "byol": [
        ((0.08, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
        ((0.08, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    ],
    "moco_v1": [((0.2, 1), 0.5, 1, (0.4, 0.4, 0.4, 0.4), 0.2, 0, 0)],
    "moco_v2": [((0.2, 1), 0.5, 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0)],
    "vicreg": [
        ((0.08, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
        ((0.08, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    ],
    "dino": [
        ((0.4, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
        ((0.4, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
        ((0.05, 0.4), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0),
    ],
    "dinov2": [
        ((0.32, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
        ((0.32, 1), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
        ((0.05, 0.32), 0.5, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0),
    ],
    "swav": [
        ((0.14, 1), 0.5, 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0),
        ((0.05, 0.14), 0.5, 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0),
    ],
    "mae": [((0.2, 1), 0.5, 0, (0, 0, 0, 0), 0, 0, 0)],
    "rotation": [((0.08, 1), 0.5, 0, (0, 0, 0, 0), 0, 0, 0)],
}
SIZES = {"dino": [224] * 2 + [96] * 8, "dinov2": [224] * 2 + [96] * 8, "swav": [224] * 2 + [96] * 6}
BICUBIC = ("simclr", "byol", "vicreg", "dino", "dinov2", "mae")


def recipes_of(made: Recipe | Views) -> tuple[Recipe, ...]:
    return made.recipes if isinstance(made, Views) else (made,)


def test_replace_changes_every_view_alone():
    views = augment.byol(32).replace(mean=(0.5,), std=(0.2,))
    assert [(r.mean, r.std, r.blur) for r in views.recipes] == [((0.5,), (0.2,), 1.0), ((0.5,), (0.2,), 0.1)]
    assert views(torch.zeros(2, 1, 40, 40), seed=0)[1].shape == (2, 1, 32, 32)
    assert augment.mae(32).replace(scale=(0.5, 1.0)).scale == (0.5, 1.0)
    with pytest.raises(ValueError, match="blur must be 0 to 1; got 2"):
        augment.byol(32).replace(blur=2)


@pytest.mark.parametrize("name", NUMBERS)
def test_recipe_has_the_papers_numbers(name):
    recipes = recipes_of(RECIPES[name]())
    got = [
        (
            r.scale,
            r.horizontal_flip,
            r.jitter * r.jitters,
            (r.brightness, r.contrast, r.saturation, r.hue),
            r.grey,
            r.blur,
            r.solarize,
        )
        for r in dict.fromkeys(recipes)
    ]
    assert got == NUMBERS[name]
    assert [r.size[0] for r in recipes] == SIZES.get(name, [224] * len(recipes))
    assert all((r.interpolation == "bicubic") == (name in BICUBIC) for r in recipes)
    assert all(r.antialias == (name not in ("simclr", "byol")) for r in recipes)
    assert all(r.std[0] == (0.228 if name == "swav" else 0.229) for r in recipes)
    assert all(r.grey_first == (name == "moco_v1") for r in recipes)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_recipes_have_in_common(name):
    recipe = RECIPES[name]()
    for r in recipe.recipes if isinstance(recipe, Views) else [recipe]:
        assert r.ratio == (3 / 4, 4 / 3) and r.horizontal_flip == 0.5
        if r.blur:
            taps = {"dinov2": 9, "simclr": 23, "byol": 23}.get(name, 13)
            assert r.sigma == (0.1, 2.0) and r.taps() == taps
        assert r.threshold == 0.5 and r.mean == (0.485, 0.456, 0.406)


def test_small_results_have_fewer_taps():
    assert [Recipe(size=(size, 50), blur_kernel=23).taps() for size in (11, 12, 13)] == [21, 23, 23]


def test_lists_are_as_good_as_tuples():
    recipe = Recipe(size=[8, 9], scale=[0.2, 1.0], mean=[0.5], std=[0.25], erase=1.0, erase_value=0.75)
    same = Recipe(size=(8, 9), scale=(0.2, 1.0), mean=(0.5,), std=(0.25,), erase=1.0, erase_value=0.75)
    assert recipe == same
    parameters = recipe.sample([(20, 20)] * 3, seed=0)
    assert parameters.erase_value == 0.75 and parameters.size == (8, 9)


def test_views_go_where_they_are_wanted():
    views, images = multi_crop(Recipe(size=(8, 8)), Recipe(size=(8, 8)), Recipe(size=(4, 4)), 1), torch.rand(2, 3, 9, 9)
    out = [torch.empty(2, 3, *r.size) for r in views.recipes]
    made = views(images, seed=0, out=out)
    assert all(x is y for x, y in zip(made, out, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(made, views(images, seed=0), strict=True))
    with pytest.raises(ValueError, match="out must hold 3 Tensors, one per view; got 2"):
        views(images, seed=0, out=out[:2])


def test_every_recipe_is_tested():
    assert set(RECIPES) == {*NUMBERS, "barlow_twins"}
    assert augment.barlow_twins is augment.vicreg


def test_simclr_blur_has_23_taps_at_224():
    parameters = augment.simclr().sample([(256, 256)], seed=0)
    assert [p.blur_kernel for p in parameters] == [23, 23]


def test_dinov2_inverted_blur():
    assert [r.blur for r in augment.dinov2(inverted_blur=True).recipes[:3]] == [0.0, 0.9, 0.5]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_prints_and_pickles(name):
    recipe = RECIPES[name](32)
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    recipe = Views((*recipe.recipes[:2], *recipe.recipes[-1:])) if isinstance(recipe, Views) else recipe
    views = recipe(images, seed=1)
    again = pickle.loads(pickle.dumps(recipe))(images, seed=1)
    parameters = recipe.sample(images.shape, seed=1)
    for x, y, p in zip(*([v] if isinstance(recipe, Recipe) else v for v in (views, again, parameters)), strict=True):
        assert x.isfinite().all() and torch.equal(x, y) and torch.equal(x, apply(images, p))
    assert "crop" in repr(recipe) and "object at" not in repr(recipe)


def test_rotation_tells_the_turns():
    images, recipe = torch.rand(20, 3, 16, 16), augment.rotation(16)
    parameters = recipe.sample(images.shape, seed=0)
    upright = apply(images, dataclasses.replace(parameters, turns=torch.zeros(20, dtype=torch.int64)))
    assert set(parameters.turns.tolist()) == {0, 1, 2, 3}
    turned = [x.rot90(int(k), (1, 2)) for x, k in zip(upright, parameters.turns, strict=True)]
    torch.testing.assert_close(torch.stack(turned), recipe(images, seed=0), rtol=0, atol=1e-5)


def test_two_views_and_multi_crop():
    first, second, local = Recipe(size=(8, 8)), Recipe(size=(8, 8), grey=1.0), Recipe(size=(4, 4))
    assert two_views(first).recipes == (first, first)
    assert two_views(first, second).recipes == (first, second)
    assert multi_crop(first, second, local, 3).recipes == (first, second, local, local, local)
    with pytest.raises(ValueError, match="count must be 0 or more"):
        multi_crop(first, second, local, -1)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"jitter": 1.5}, "jitter must be 0 to 1"),
        ({"grey": float("nan")}, "grey must be 0 to 1"),
        ({"hue": 0.6}, "hue must be 0 to 0.5"),
        ({"scale": (0.5, 0.2)}, r"scale must be the least and the largest; got \(0.5, 0.2\)"),
        ({"translate": (0.1, 1.5)}, "translate must be 0 to 1; got 1.5"),
        ({"erase_value": float("nan")}, "erase_value must be"),
        ({"std": (0.0,), "mean": (0.0,)}, "std must be 1e-30 to 1e[+]30; got 0"),
        ({"size": (0, 8)}, "size must be 1 or more"),
        ({"blur_kernel": 4}, "blur_kernel must be odd"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic"),
        ({"turns": True, "size": (8, 9)}, "turns need a square size"),
        ({"bits": 9}, "bits must be 1 to 8"),
        ({"mean": (0.5,), "std": ()}, "mean and std must have one length"),
    ],
)
def test_recipe_bad_numbers(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": (24, 24, 3)}, r"size must be a pair; got \(24, 24, 3\)"),
        ({"size": 24.0}, "size must be a whole number; got float"),
        ({"scale": 0.5}, "scale must be a pair; got 0.5"),
        ({"zoom": (1,)}, r"zoom must be a pair; got \(1,\)"),
        ({"translate": (0.1, 0.1, 0.1)}, "translate must be a pair"),
        ({"mean": "abc"}, "mean must be a number or hold numbers; got 'abc'"),
        ({"std": None}, "std must be a number or hold numbers; got None"),
        ({"antialias": "no"}, "antialias must be True or False; got 'no'"),
        ({"grey_first": 1}, "grey_first must be True or False; got 1"),
        ({"brightness": (0.5, 1.5)}, "brightness must be a number"),
    ],
)
def test_recipe_wrong_types(fields, message):
    with pytest.raises(TypeError, match=message):
        Recipe(**fields)


def test_numbers_of_numpy_and_torchvisions_names_do():
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    recipe = Recipe(
        size=np.int64(8), mean=np.float32(0.5), std=np.ones(1), interpolation=transforms.InterpolationMode.BICUBIC
    )
    assert recipe == Recipe(size=(8, 8), mean=(0.5,), std=(1.0,), interpolation="bicubic")
    same = Recipe(size=8, scale=np.array([0.2, 1]), brightness=np.float64(0.5), blur_kernel=np.int64(3))
    assert repr(dataclasses.astuple(same)) == repr(
        dataclasses.astuple(Recipe(size=8, scale=(0.2, 1), brightness=0.5, blur_kernel=3))
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(size=(9, 8), interpolation="bicubic", antialias=False, grey_first=True, blur_kernel=5),
        Recipe(size=(8, 9), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), erase_value=0.7),
    ],
    ids=["bicubic", "normalised"],
)
def test_what_is_not_drawn_reaches_the_parameters(recipe):
    parameters = recipe.sample([(20, 20)], seed=0)
    assert parameters.blur_kernel == recipe.taps()
    for field in ("size", "interpolation", "antialias", "grey_first", "mean", "std", "erase_value"):
        assert getattr(parameters, field) == getattr(recipe, field), field


def test_strengths_act_by_themselves():
    coloured = Recipe(size=8, brightness=0.4, degrees=30)
    parameters = coloured.sample([(20, 20)] * 4, seed=0)
    assert parameters.jitter[:, 0].all() and not parameters.jitter[:, 1:].any() and parameters.moved.all()
    assert "jitter 0.4/0/0/0" in repr(coloured) and "turn ±30°" in repr(coloured)
    for still in (Recipe(size=8), Recipe(size=8, jitter=0.0, brightness=0.4, affine=0.0, degrees=30)):
        parameters = still.sample([(20, 20)] * 4, seed=0)
        assert not parameters.jitter.any() and not parameters.moved.any()
        assert "jitter" not in repr(still) and "turn" not in repr(still)


def test_arguments_of_recipes():
    small = augment.simclr(32, strength=0.5, blur=0.0)[0]
    assert (small.size, small.brightness, small.hue, small.blur) == ((32, 32), 0.4, 0.1, 0.0)
    for name in ("dino", "dinov2", "swav"):
        views = RECIPES[name](64, local_size=24, count=3)
        assert [r.size[0] for r in views] == [64, 64, 24, 24, 24], name


def test_views_hold_recipes_alone():
    assert list(two_views(Recipe(size=8))) == [Recipe(size=8)] * 2 and Views(augment.mae(8))[0] == augment.mae(8)
    assert hash(Views([Recipe(size=8)])) == hash(Views((Recipe(size=8),)))
    with pytest.raises(TypeError, match="recipes must each be a Recipe, of one view; got view"):
        two_views(augment.simclr(8))
    with pytest.raises(ValueError, match="recipes must not be empty"):
        Views(())
