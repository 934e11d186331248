"""How good a representation is: the fixed protocol, the watch for collapse, and the pictures."""

from pyssl_fast.evaluation.collapse import Decorrelation, decorrelation

__all__ = ["Decorrelation", "decorrelation"]
