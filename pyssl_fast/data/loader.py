"""Batches of views, the same ones whatever the number of worker processes and wherever a run was interrupted."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyssl_fast.augment import Recipe
from pyssl_fast.data.augmentation import AUGMENTATIONS
from pyssl_fast.data.images import DataError, Images

Key = tuple[int, int]  # epoch, index of the image


class Batch(NamedTuple):
    """views: one uint8 [B, C, H, W] per recipe; labels: [B] int64, None unless they were asked for."""

    views: list[Tensor]
    labels: Tensor | None


class ViewDataset(Dataset[Batch]):
    """Batches of views: of the keys (epoch, index) of one epoch, each drawn by (seed, epoch, index, view).

    Args:
        images: what they are views of.
        recipes: one per view.
        seed: of the run.
        labelled: whether the labels come along; the images must have labels then.
        augmentation: "pyssl_fast", or "torchvision", to compare with.
    """

    def __init__(
        self, images: Images, recipes: Sequence[Recipe], seed: int, *, labelled: bool = False,
        augmentation: str = "pyssl_fast",
    ) -> None:  # fmt: skip
        self.images = images
        self.recipes = recipes
        self.seed = seed
        self.labels = images.labels if labelled else None
        if labelled and self.labels is None:
            raise ValueError("the images have no labels")
        self.views = AUGMENTATIONS[augmentation]

    def __getitems__(self, keys: list[Key]) -> Batch | DataError:
        """The whole batch at once: what is done once per call is not done for every image."""
        epoch, index = keys[0][0], [index for _, index in keys]
        try:
            pictures = [self.images.picture(number) for number in index]
        except DataError as error:
            return error  # raised inside a worker process it would come out as a page of traceback
        views = self.views(self.recipes, pictures, self.seed, epoch, index)
        return Batch(views, None if self.labels is None else torch.from_numpy(self.labels[index]))


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
        dataset,
        batch_sampler=schedule,
        num_workers=workers,
        collate_fn=_as_it_is,
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


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupt_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler: a worker that is stuck can be ended
