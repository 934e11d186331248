"""The pictures are drawn for every kind of run: they are looked at by people, here only that they come out whole."""

import io

import numpy as np
import pytest
from PIL import Image

from pyssl_fast.data.images import ArrayImages
from pyssl_fast.evaluation import pictures


def opened(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def colours(png):
    return set(map(tuple, np.asarray(opened(png).convert("RGB")).reshape(-1, 3).tolist()))


def rgb(code):
    return tuple(bytes.fromhex(code[1:]))


@pytest.mark.parametrize("steps", [1, 4, 200])
def test_loss_curve(steps):
    lines = [{"kind": "step", "step": n + 1, "epoch": n // 100, "loss": 1 / (n + 1)} for n in range(steps)]
    lines += [{"kind": "epoch", "epoch": n, "rank": 3.0, "spread": 0.5} for n in range(max(1, steps // 100))]
    assert opened(pictures.loss_curve(lines, "a run")).width == 1200


def test_a_loss_curve_with_a_spread_that_was_no_number():
    lines = [{"kind": "step", "step": 1, "epoch": 0, "loss": 1.0}]
    lines += [{"kind": "epoch", "epoch": 0, "rank": None, "spread": None}]
    assert opened(pictures.loss_curve(lines, "a run")).width == 1200


@pytest.mark.filterwarnings("error")
def test_names_of_classes_are_drawn_as_they_are():
    images = ArrayImages(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)
    features = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    assert opened(pictures.embedding_map(features, images, ("a$x_$", "漢字"), 8, "run"))


@pytest.mark.parametrize("count", [2, 60])
def test_map_with_classes_has_their_colours(count):
    rng = np.random.default_rng(0)
    images = ArrayImages(rng.integers(0, 256, (count, 8, 8), dtype=np.uint8), np.arange(count) % 2)
    found = colours(
        pictures.embedding_map(rng.normal(size=(count, 5)).astype(np.float32), images, ("a", "b"), 8, "run")
    )
    assert {rgb(pictures.PALETTE[0]), rgb(pictures.PALETTE[1])} <= found  # the legend shows them unmixed


def test_map_without_classes_shows_the_images():
    images = ArrayImages(np.full((4, 8, 8, 3), (250, 10, 20), np.uint8), None)
    points = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    assert (250, 10, 20) in colours(pictures.embedding_map(points, images, None, 8, "run"))


def test_map_of_collapsed_features():
    images = ArrayImages(np.zeros((60, 8, 8), np.uint8), np.arange(60) % 3)
    assert opened(pictures.embedding_map(np.ones((60, 5), np.float32), images, ("a", "b", "c"), 8, "run"))


def test_smoothing_by_hand():
    assert pictures._smooth(np.array([1.0, 2.0, 6.0]), 1).tolist() == [1.0, 3.0, 4.0]
    assert pictures._smooth(np.array([1.0, 2.0]), 0).tolist() == [1.0, 2.0]
