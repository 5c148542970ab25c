"""The shape of a module's input where the user gave none: from its attributes or its first layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fold.sources.given_shapes import DTYPES, Size
from fold.sources.shapes import InputShape, arrange

CONFIGS = ("default_cfg", "pretrained_cfg")
EXAMPLE = "example_input_array"
SPATIAL = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def infer_inputs(module: nn.Module) -> tuple[list[InputShape], str] | None:
    """Shapes for the arguments of `forward`, and where they were found; None if they are unknown.

    Sources are timm's `default_cfg` (`pretrained_cfg`) and Lightning's `example_input_array`. Else the first layer
    gives the channels of an image, with free sizes, or the features of a row.
    """
    given = _from_example(module) or _from_config(module) or _from_first_layer(module)
    if given is None:
        return None
    shapes, whence = given
    try:
        return arrange(module, shapes), whence
    except Exception:  # forward takes further arguments
        return None


def _from_config(module: nn.Module) -> tuple[list[InputShape], str] | None:
    for name in CONFIGS:
        config = getattr(module, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if isinstance(size, tuple | list) and size and all(isinstance(one, int) and one > 0 for one in size):
            first = _first_layer(module)
            # timm's config is of the pretrained weights; the argument `in_chans` may have changed the channels
            channels = first.in_channels if isinstance(first, nn.modules.conv._ConvNd) else size[0]
            return [InputShape(None, (channels, *size[1:]), torch.float32)], name
    return None


def _from_example(module: nn.Module) -> tuple[list[InputShape], str] | None:
    example: Any = getattr(module, EXAMPLE, None)
    tensors = (
        dict(example)
        if isinstance(example, Mapping)
        else dict(enumerate(example if isinstance(example, tuple | list) else [example]))
    )
    if not tensors or not all(isinstance(one, torch.Tensor) and one.ndim for one in tensors.values()):
        return None
    if any(str(one.dtype).removeprefix("torch.") not in DTYPES for one in tensors.values()):
        return None
    return [
        InputShape(name if isinstance(name, str) else None, tuple(one.shape[1:]), one.dtype)
        for name, one in tensors.items()
    ], EXAMPLE


def _from_first_layer(module: nn.Module) -> tuple[list[InputShape], str] | None:
    layer = _first_layer(module)
    shape: tuple[Size, ...]
    dtype = torch.float32
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shape = (layer.in_channels, *SPATIAL[len(layer.kernel_size)])
    elif isinstance(layer, nn.BatchNorm2d):
        shape = (layer.num_features, *SPATIAL[2])
    elif isinstance(layer, nn.BatchNorm3d):
        shape = (layer.num_features, *SPATIAL[3])
    elif isinstance(layer, nn.Linear) and not any(isinstance(one, nn.Flatten) for one in module.modules()):
        shape = (layer.in_features,)
    elif isinstance(layer, nn.Embedding):
        shape, dtype = ("L",), torch.int64
    else:
        return None
    return [InputShape(None, shape, dtype)], f"its first layer, {type(layer).__name__}"


def _first_layer(module: nn.Module) -> nn.Module | None:
    """The first registered layer with weights of its own."""
    return next((layer for layer in module.modules() if list(layer.parameters(recurse=False))), None)
