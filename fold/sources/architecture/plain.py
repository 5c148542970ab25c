"""Makes a loaded module plain: lazy layers become ordinary ones, weights computed from others (weight_norm,
spectral_norm, any parametrisation) become parameters, and everything is float32."""

from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fold.errors import BnfoldError
from fold.sources.quiet import silenced

HOOKS = WeightNorm | SpectralNorm


def make_plain(module: nn.Module) -> nn.Module:
    """`module` itself, changed in place: in eval mode and ready to export. Names of layers do not change.

    A weight that is computed from others is computed in float64 and rounded once. Raises `BnfoldError` for a lazy layer
    without shapes.
    """
    module.eval()
    for name, layer in module.named_modules():
        if isinstance(layer, LazyModuleMixin):
            _materialise(name, layer)
    with silenced():
        for layer in list(module.modules()):
            _compute_weights(layer)
    return module.float()


def _materialise(name: str, layer: Any) -> None:
    """Do what the first forward does to a lazy layer whose parameters are loaded (torch.nn.modules.lazy)."""
    if layer.has_uninitialized_params():
        raise BnfoldError(f"{name or 'the module'}: is lazy and has no weights yet; load a checkpoint that has them")
    layer._initialize_hook.remove()
    layer._load_hook.remove()
    del layer._initialize_hook, layer._load_hook
    weight = layer.running_mean if getattr(layer, "weight", None) is None else layer.weight
    if isinstance(layer, nn.Linear):
        layer.in_features = weight.shape[1]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        layer.in_channels = weight.shape[0] if layer.transposed else weight.shape[1] * layer.groups
    elif weight is not None:
        layer.num_features = weight.shape[0]
    if layer.cls_to_become is not None:
        layer.__class__ = layer.cls_to_become


def _compute_weights(layer: nn.Module) -> None:
    hooks = {key: hook for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, HOOKS)}
    computed = list(layer.parametrizations) if parametrize.is_parametrized(layer) else []  # type: ignore[arg-type]
    if not hooks and not computed:
        return
    layer.double()
    for key, hook in hooks.items():
        hook.remove(layer)
        del layer._forward_pre_hooks[key]
        layer._forward_pre_hooks_with_kwargs.pop(key, None)
    for name in computed:
        parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    layer.float()
