"""What a method has to state. Everything else belongs to the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from pyssl_fast import augment
from pyssl_fast.data import ImageData


@dataclass(frozen=True)
class Budget:
    """How long, and how, a method trains on some data unless told otherwise.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step (a method makes several views of each).
        learning_rate: AdamW's, after the warm-up.
        weight_decay: AdamW's, of matrices and convolutions alone.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4


def option(default: float | int | str | bool, help: str) -> Any:
    """A field of `Recipe.Options`: a hyper-parameter with its default and a few words that say what it is."""
    return field(default=default, metadata={"help": help})


class Recipe(nn.Module, ABC):
    """A method: the networks and their state, the views, the loss.

    All that training changes (heads, a teacher, a queue, a learned temperature) is a parameter or a buffer of the
    module; that is how it gets into the checkpoint and onto the device. Parameters with requires_grad are optimised.

    Class attributes:
        title: the method's name as people write it.
        family: the kernel family of its loss.
        Options: a dataclass of the method's own hyper-parameters. Each field, made by `option`, has a default and a
            help text, and is a command-line option.
        budgets: by name of the data; "" is for all others.
        supervised: whether the labels of the training images reach the loss.
    """

    title: ClassVar[str]
    family: ClassVar[str]
    Options: ClassVar[type[Any]]
    budgets: ClassVar[dict[str, Budget]]
    supervised: ClassVar[bool] = False

    encoder: nn.Module

    @abstractmethod
    def __init__(self, encoder: nn.Module, features: int, options: Any) -> None:
        """encoder: [N, C, H, W] -> [N, features]; the result of training, and what is evaluated."""
        super().__init__()
        self.encoder = encoder

    @classmethod
    def complete(cls, options: Mapping[str, Any], images: int, batch_size: int) -> dict[str, Any]:
        """The options, with those settled that depend on the number of training images, or of those in a step.

        ValueError: they do not fit.
        """
        return dict(options)

    @staticmethod
    @abstractmethod
    def augmentations(data: ImageData) -> Sequence[augment.Recipe]:
        """One per view. Views may differ in kind and in size."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] in −1..1 -> [N, D]: the embeddings that the loss compares, watched for collapse."""

    @abstractmethod
    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One [N, C, H, W] in −1..1 per augmentation -> what the loss takes. Gradients flow back through it."""

    @abstractmethod
    def loss(self, *embeddings: Tensor) -> Tensor:
        """What `embed` gave -> [] loss. Timed apart from the rest, its backward pass included.

        A supervised method gets one more tensor at the end: [N] int64, the labels of the images.
        """

    def after_step(self, progress: float) -> None:
        """What follows a step of the optimizer, such as a teacher. progress: of the whole run, above 0, at last 1."""
