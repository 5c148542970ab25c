"""Runs an exported program in float64; each parameter is widened only while a node reads it."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fold.evaluate.deadline import Deadline


class InFloat64(fx.Interpreter):
    """Runs the module of a `torch.export` program. Casts to other float types become casts to float64.

    One object is for one run, which raises `TooLongError` if it takes more than its time.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # messages of ours are one line
        self._deadline = Deadline()

    def run_node(self, n: fx.Node) -> Any:
        self._deadline.check(n.name)
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:  # it would insist on float32
            return None
        args, kwargs = pytree.tree_map(_widened, (args, kwargs))
        return super().call_function(target, args, kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
