"""Monte Carlo arithmetic, as in fold.evaluate.noise, for what PyTorch computes in float64."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fold.evaluate.noise import AMPLITUDE, AMPLITUDE_REDUCED


class TorchNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context each operator of PyTorch writes its float64 results with noise.

    Numbers that the `stored` type holds exactly are left as they are. Views and results that are written in place are
    left as they are, too: a copy would lose what is written through them later.
    """

    def __init__(self, stored: torch.dtype, seed: int, roundings: float | None) -> None:
        """Noise of so many `roundings`; None: of the amplitude of the `stored` type."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored = stored
        if roundings is None:
            reduced = torch.finfo(stored).eps > torch.finfo(torch.float32).eps
            roundings = AMPLITUDE_REDUCED if reduced else AMPLITUDE
        self._size = roundings * torch.finfo(stored).eps / 2
        self._random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        fresh = not func._schema.is_mutable and all(value.alias_info is None for value in func._schema.returns)
        return pytree.tree_map(self._moved, result) if fresh else result

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        exact = value == value.to(self._stored).to(torch.float64)
        if exact.all():  # weights that are widened, above all
            return value
        drawn = torch.rand(value.shape, generator=self._random, dtype=torch.float64) * 2 - 1
        return torch.where(exact, value, value * (1 + self._size * drawn.to(value.device)))
