"""The protocol against answers found by hand."""

import numpy as np
import pytest
import torch

from pyssl_fast.data.images import ArrayImages
from pyssl_fast.evaluation.protocol import (
    RAW,
    TRAINED,
    UNTRAINED,
    Score,
    calibrated,
    encoder_features,
    knn_accuracy,
    linear_accuracy,
    not_beaten,
    pixel_features,
    to_input,
)

LABELS = np.repeat(np.arange(2), 25)
ANGLES = np.concatenate([np.linspace(0.0, 0.2, 25), np.linspace(1.0, 1.2, 25)])
BANK = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def test_knn_goes_by_angle_not_by_length():
    test = np.array([[100.0, 10.0], [0.001, 0.002], [5.0, 0.5]], np.float32)  # angles 0.10, 1.11, 0.10
    assert knn_accuracy(BANK * np.arange(1, 51, dtype=np.float32)[:, None], LABELS, test, np.array([0, 1, 0])) == 1
    assert knn_accuracy(BANK, LABELS, test, np.array([1, 1, 0])) == pytest.approx(2 / 3)


def test_knn_takes_the_majority_of_twenty():
    # the nearest image has class 1, the other 19 of the nearest 20 have class 0
    labels = LABELS.copy()
    labels[0] = 1
    assert knn_accuracy(BANK, labels, BANK[:1], np.array([0])) == 1


def test_knn_with_a_bank_smaller_than_twenty():
    assert knn_accuracy(BANK[[0, 1, 2, 30]], LABELS[[0, 1, 2, 30]], BANK[40:41], np.array([0])) == 1


def test_linear_probe_separates_what_a_line_separates():
    assert linear_accuracy(BANK, LABELS, BANK, LABELS) == 1
    assert linear_accuracy(BANK, LABELS, BANK, 1 - LABELS) == 0
    constant = np.concatenate([BANK, np.ones((50, 1), np.float32)], axis=1)  # a pixel that never changes does no harm
    assert linear_accuracy(constant, LABELS, constant, LABELS) == 1


def test_pixels_are_0_to_1_and_averaged_down_when_large():
    small = ArrayImages(np.full((2, 28, 28), 255, np.uint8), None)
    assert np.array_equal(pixel_features(small, 28), np.ones((2, 784), np.float32))
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    large = ArrayImages(board[None].astype(np.uint8), None)
    assert np.allclose(pixel_features(large, 64), np.full((1, 1024), 0.5))


def test_inputs_span_minus_one_to_one():
    assert to_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_encoder_features_are_in_order_and_change_nothing():
    torch.manual_seed(0)
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (7, 8, 8), dtype=np.uint8), None)
    encoder = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Dropout(0.5))
    encoder[0].weight.data.fill_(2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    features = encoder_features(encoder, images, 8)
    assert features.shape == (7, 64)
    assert np.allclose(features, (images.array.reshape(7, 64) / 127.5 - 1) * 2, atol=1e-4)
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_calibration_sets_the_statistics_of_a_copy():
    torch.manual_seed(0)
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (501, 4, 4), dtype=np.uint8), None)
    encoder = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.5), torch.nn.Flatten())
    features = encoder_features(calibrated(encoder, images, 4), images, 4)
    assert abs(features.mean()) < 0.01
    assert abs(features.std() - 1) < 0.01
    assert encoder[0].num_batches_tracked == 0
    assert np.array_equal(features, encoder_features(calibrated(encoder, images, 4), images, 4))


def test_what_was_not_beaten_is_named():
    scores = {RAW: Score(0.8, 0.7), UNTRAINED: Score(0.7, 0.9), TRAINED: Score(0.9, 0.95)}
    assert not_beaten(scores) == []
    scores[TRAINED] = Score(0.8, 0.8)  # a draw is not a win
    assert not_beaten(scores) == ["raw pixels on k-NN", "the untrained encoder on the linear probe"]
