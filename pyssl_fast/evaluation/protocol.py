"""The evaluation protocol, the same for every method.

Three representations of the same images are compared:

- raw pixels: grey values or RGB in 0..1, averaged down to 32×32 where the images are larger;
- the untrained encoder: exactly the weights that training started from, with batch norm statistics of the bank;
- the trained encoder. Of both encoders the features before the projection head, in evaluation mode, in float32.

All three see the same unaugmented images and the same labels: the images of the training set, all of them labelled, are
the bank; the test images are only ever asked about. Two questions:

- k-NN: the majority class of the 20 nearest images of the bank by cosine similarity.
- linear probe: multinomial logistic regression on features standardised by the bank's mean and standard deviation,
  with an L2 penalty of C = 0.01 (scikit-learn's scale) and at most 200 rounds of L-BFGS, the same for all three. No
  setting is tuned on test images.

Where a source has test images, they are used (Fashion-MNIST: the first 20,000 of the training file, or all 60,000,
against the 10,000 of the test file). Otherwise a fifth of every class is set aside, always the same fifth, whatever the
seed of the run.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyssl_fast.data.images import Images, Labels

NEIGHBOURS = 20
PENALTY = 0.01
ROUNDS = 200
PIXELS_SIDE = 32
RAW, UNTRAINED, TRAINED = "raw pixels", "untrained encoder", "trained encoder"

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """Accuracies on the test images, 0 to 1."""

    knn: float
    linear: float


def to_input(images: Tensor) -> Tensor:
    """What every encoder sees, in training too: uint8 0..255 -> float32 −1..1."""
    return images.float().div_(127.5).sub_(1)


def encoder_features(encoder: nn.Module, images: Images, size: int) -> Features:
    """[N, D] features of unaugmented images, in evaluation mode, which the encoder leaves as it was."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            parts = [encoder(to_input(batch.to(device))).float().cpu() for batch in images.batches(size)]
    finally:
        encoder.train(was_training)
    return np.asarray(torch.cat(parts).numpy())


def calibrated(encoder: nn.Module, images: Images, size: int) -> nn.Module:
    """A copy whose batch norm statistics, which no training has set, are means over one pass over the images, in order.

    Everything else, dropout too, stays as in evaluation. An encoder without batch norm comes back as it is.
    """
    encoder = copy.deepcopy(encoder).eval()
    norms = [part for part in encoder.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    if norms:
        device = next(encoder.parameters()).device
        with torch.no_grad():
            for batch in images.batches(size):
                if len(batch) > 1:  # a single image may have no variance
                    encoder(to_input(batch.to(device)))
    return encoder.eval()


def pixel_features(images: Images, size: int) -> Features:
    """[N, C·H·W] raw pixels, 0..1, averaged down to 32×32 where `size` is larger."""
    parts = []
    for batch in images.batches(size):
        pixels = batch.float() / 255
        if size > PIXELS_SIDE:
            pixels = F.interpolate(pixels, (PIXELS_SIDE, PIXELS_SIDE), mode="area")
        parts.append(pixels.flatten(1))
    return np.asarray(torch.cat(parts).numpy())


def score(bank: Features, bank_labels: Labels, test: Features, test_labels: Labels) -> Score:
    """Both accuracies. bank: [N, D] with labels [N]; test: [M, D] with labels [M]."""
    return Score(
        knn_accuracy(bank, bank_labels, test, test_labels), linear_accuracy(bank, bank_labels, test, test_labels)
    )


def knn_accuracy(bank: Features, bank_labels: Labels, test: Features, test_labels: Labels) -> float:
    """Share of test images whose class is the majority among their 20 nearest of the bank (all, if it is smaller)."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(bank)), algorithm="brute")
    neighbours.fit(unit(bank), bank_labels)  # on unit vectors, Euclidean distance orders as cosine similarity does
    return float(neighbours.score(unit(test), test_labels))


def linear_accuracy(bank: Features, bank_labels: Labels, test: Features, test_labels: Labels) -> float:
    """Share of test images that a logistic regression fitted on the bank gets right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=ROUNDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped after the last round
        probe.fit(bank, bank_labels)
    return float(probe.score(test, test_labels))


def not_beaten(scores: dict[str, Score]) -> list[str]:
    """What training did not beat, such as "raw pixels on k-NN"; empty when it beat both baselines on both measures."""
    trained = scores[TRAINED]
    return [
        f"{'' if name == RAW else 'the '}{name} on {measure}"
        for name, baseline in scores.items()
        if name != TRAINED
        for measure, ours, theirs in (
            ("k-NN", trained.knn, baseline.knn),
            ("the linear probe", trained.linear, baseline.linear),
        )
        if ours <= theirs
    ]


def unit(features: Features) -> Features:
    """Rows of length 1; zeros stay zeros."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))
