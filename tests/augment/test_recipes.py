"""The papers' numbers, and how recipes meet batches."""

import dataclasses
import pickle

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
            r.jitter,
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
        ({"scale": (0.5, 0.2)}, "scale must be 0.5 to 1"),
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
