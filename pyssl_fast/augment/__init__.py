"""Random views of images: explicit parameters per sample, how they are drawn, and how they are applied."""

from pyssl_fast.augment.apply import apply
from pyssl_fast.augment.parameters import Parameters, plain

__all__ = ["Parameters", "apply", "plain"]
