"""Batches of views, the same ones whatever the number of worker processes and wherever a run was interrupted."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyssl_fast.data.augmentation import Augmentation, seeded
from pyssl_fast.data.images import DataError, Images, to_tensor

Key = tuple[int, int]  # epoch, index of the image


class Sample(NamedTuple):
    """views: one uint8 [C, H, W] per augmentation; label: of the image, None unless it was asked for."""

    views: list[Tensor]
    label: int | None


class Batch(NamedTuple):
    """views: one uint8 [B, C, H, W] per augmentation; labels: [B] int64, None unless they were asked for."""

    views: list[Tensor]
    labels: Tensor | None


class ViewDataset(Dataset[Sample | DataError]):
    """The views of an image: for the key (epoch, index) one per augmentation, drawn by (seed, *key).

    Args:
        images: what they are views of.
        augmentations: one per view.
        seed: of the run.
        labelled: whether the label comes along; the images must have labels then.
    """

    def __init__(
        self, images: Images, augmentations: Sequence[Augmentation], seed: int, *, labelled: bool = False
    ) -> None:
        self.images = images
        self.augmentations = augmentations
        self.seed = seed
        self.labels = images.labels if labelled else None
        if labelled and self.labels is None:
            raise ValueError("the images have no labels")

    def __getitem__(self, key: Key) -> Sample | DataError:
        try:
            picture = self.images.picture(key[1])
        except DataError as error:
            return error  # raised inside a worker process it would come out as a page of traceback
        with seeded(self.seed, *key):
            views = [to_tensor(augmentation.transform(picture)) for augmentation in self.augmentations]
        return Sample(views, None if self.labels is None else int(self.labels[key[1]]))


class Schedule(Sampler[list[Key]]):
    """The keys of every batch of a run, from step `start` on. An epoch's order depends on (seed, epoch) alone; the
    images left over when `batch_size` does not divide their number sit out, others in every epoch."""

    def __init__(self, images: int, batch_size: int, epochs: int, seed: int, start: int = 0) -> None:
        self.images = images
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.start = start
        self.per_epoch = images // batch_size

    def __len__(self) -> int:
        return self.epochs * self.per_epoch - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        for epoch in range(self.start // self.per_epoch, self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.images).tolist()
            done = max(self.start - epoch * self.per_epoch, 0)
            for batch in range(done, self.per_epoch):
                chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [(epoch, index) for index in chosen]


WORKER_DIED = "a data worker process died (out of memory?); try --workers 0"


def view_loader(dataset: ViewDataset, schedule: Schedule, workers: int) -> Generator[Batch, None, None]:
    """Batches in the schedule's order.

    Raises:
        DataError: while iterating, when an image cannot be read or a worker process has died.
    """
    loader: DataLoader[Batch | DataError] = DataLoader(
        dataset,  # type: ignore[arg-type]  # of samples, which _collate makes into batches
        batch_sampler=schedule,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_interrupt_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: drawing the workers' seeds must not move torch's random numbers
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (EOFError, ConnectionError) as error:
        if workers == 0 or "Original Traceback" in str(error):  # no worker, or one that lives to tell of it
            raise
        raise DataError(WORKER_DIED) from error  # while it handed a batch over
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise DataError(WORKER_DIED) from error


def _collate(samples: list[Sample | DataError]) -> Batch | DataError:
    views, labels = [], []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        views.append(sample.views)
        labels += [] if sample.label is None else [sample.label]
    return Batch([torch.stack(view) for view in zip(*views, strict=True)], torch.tensor(labels) if labels else None)


def _leave_interrupt_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler: a worker that is stuck can be ended
