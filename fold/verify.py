"""Equivalence: two models, the same inputs, and a verdict that says how far they are apart.

R is the unfolded model in float64, U the unfolded model in float32, F the folded graph as served. The folded graph is
equivalent if it is no further from the truth than float32 rounding already put the unfolded one:
`max|F-R| <= 4*max|U-R| + 8*eps*max|R|`, for each output (docs/design.md, "Equivalence").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

Arrays = dict[str, np.ndarray]


class Reference:
    """The unfolded model in two precisions; `load_reference` makes one from a model directory."""

    def exact(self, inputs: Arrays) -> Arrays:
        """R: outputs by name, computed in float64."""
        raise NotImplementedError

    def unfolded(self, inputs: Arrays) -> Arrays:
        """U: outputs by name, computed in float32."""
        raise NotImplementedError
