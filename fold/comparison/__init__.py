"""Compares any two models: whether they compute the same, and where they part."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.comparison.comparison import Comparison, compare
    from fold.comparison.layers import Parting

__all__ = ["Comparison", "Parting", "compare"]

__getattr__ = lazy_names(__name__, {"Comparison": "comparison", "Parting": "layers", "compare": "comparison"})
