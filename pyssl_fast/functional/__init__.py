"""The losses as functions."""

from pyssl_fast.functional.similarity import nt_xent

__all__ = ["nt_xent"]
