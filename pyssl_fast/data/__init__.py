"""Images to train on: where they come from, how they are varied, and in which order they are seen."""

from pyssl_fast.data.images import DataError, ImageData, Images
from pyssl_fast.data.sources import load_data

__all__ = ["DataError", "ImageData", "Images", "load_data"]
