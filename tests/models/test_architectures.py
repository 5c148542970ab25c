"""Every architecture: its shapes, its arguments, and the BatchNorms that it ends up with."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.batchnorm import Norm
from models.cnn import cnn
from models.conv1d_tcn import conv1d_tcn
from models.densenet import densenet
from models.mlp import mlp
from models.mobilenet import mobilenet
from models.preact_resnet import preact_resnet
from models.repvgg import RepVGGBlock, repvgg
from models.resnet import resnet
from models.unet import unet
from models.vgg_after import vgg_after

Factory = Callable[..., nn.Module]

CLASSIFIERS: list[Factory] = [
    mlp,
    cnn,
    vgg_after,
    resnet,
    preact_resnet,
    mobilenet,
    densenet,
    repvgg,
    conv1d_tcn,
]
PLACED: list[Factory] = [mlp, cnn, unet, conv1d_tcn]

# Sizes other than the defaults, the shape of one input, and the shape of its output.
OTHER_SIZES: list[tuple[Factory, dict[str, object], tuple[int, ...], tuple[int, ...]]] = [
    (mlp, {"in_channels": 3, "image_size": 5, "channels": 17, "depth": 3, "classes": 4}, (3, 5, 5), (4,)),
    (cnn, {"in_channels": 3, "channels": [5, 6, 7], "depth": 1, "classes": 4, "bias": True}, (3, 13, 9), (4,)),
    (vgg_after, {"in_channels": 3, "channels": [5], "depth": 3, "classes": 4}, (3, 7, 7), (4,)),
    (vgg_after, {"channels": [5, 6], "depth": 1, "padding": 0}, (1, 8, 8), (10,)),
    (resnet, {"in_channels": 3, "channels": [6, 10], "depth": 1, "classes": 4}, (3, 11, 9), (4,)),
    (preact_resnet, {"in_channels": 3, "channels": [6, 10], "depth": 3, "classes": 4}, (3, 11, 9), (4,)),
    (mobilenet, {"in_channels": 3, "channels": [6, 10], "depth": 1, "classes": 4, "expansion": 3}, (3, 11, 9), (4,)),
    (
        densenet,
        {"in_channels": 3, "channels": 5, "growth": 3, "depth": 2, "blocks": 3, "classes": 4},
        (3, 12, 8),
        (4,),
    ),
    (unet, {"in_channels": 3, "channels": [6, 8], "classes": 2, "groups": 2}, (3, 6, 10), (2, 6, 10)),
    (unet, {"channels": [3, 4, 6, 8], "groups": 1}, (1, 16, 8), (1, 16, 8)),
    (repvgg, {"in_channels": 3, "channels": [6, 10, 12], "depth": 1, "classes": 4}, (3, 11, 9), (4,)),
    (conv1d_tcn, {"in_channels": 2, "rows": 5, "channels": 7, "depth": 2, "kernel": 5}, (2, 5, 11), (10,)),
    (conv1d_tcn, {"in_channels": 6, "rows": 0, "channels": 6, "classes": 4}, (6, 31), (4,)),
]


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def is_norm_and_relu(part: nn.Sequential) -> bool:
    return len(part) == 2 and any(isinstance(child, nn.ReLU) for child in part)


def name(value: object) -> str | None:
    return value.__name__ if inspect.isfunction(value) else None


@pytest.mark.parametrize("factory", CLASSIFIERS, ids=name)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_classifier_takes_digits_by_default(factory: Factory, batch: int) -> None:
    assert factory().eval()(torch.rand(batch, 1, 8, 8)).shape == (batch, 10)


@pytest.mark.parametrize("batch", [1, 7])
def test_the_unet_answers_with_an_image(batch: int) -> None:
    assert unet().eval()(torch.rand(batch, 1, 8, 8)).shape == (batch, 1, 8, 8)


@pytest.mark.parametrize(("factory", "arguments", "one", "answer"), OTHER_SIZES, ids=name)
@pytest.mark.parametrize("batch", [1, 5])
def test_other_sizes(
    factory: Factory, arguments: dict[str, object], one: tuple[int, ...], answer: tuple[int, ...], batch: int
) -> None:
    assert factory(**arguments).eval()(torch.rand(batch, *one)).shape == (batch, *answer)


@pytest.mark.parametrize("factory", [*CLASSIFIERS, unet], ids=name)
def test_every_batchnorm_gets_momentum_and_eps_and_is_used(factory: Factory) -> None:
    module = factory(momentum=0.25, eps=0.003)
    norms = batch_norms(module)
    assert len(norms) >= 2
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.25, 0.003)}
    module.train()(torch.rand(4, 1, 8, 8))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0, "this BatchNorm saw no batch"


@pytest.mark.parametrize("factory", [*CLASSIFIERS, unet], ids=name)
def test_the_input_is_called_x_and_all_arguments_have_plain_defaults(factory: Factory) -> None:
    assert list(inspect.signature(factory().forward).parameters) == ["x"]
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert isinstance(parameter.default, int | float | str | tuple)


@pytest.mark.parametrize("factory", PLACED, ids=name)
def test_placement_decides_what_follows_what(factory: Factory) -> None:
    for placement, order in [("before", (_BatchNorm, nn.ReLU)), ("after", (nn.ReLU, _BatchNorm))]:
        module = factory(placement=placement)
        pairs = [part for part in module.modules() if isinstance(part, nn.Sequential) and is_norm_and_relu(part)]
        assert len(pairs) == len(batch_norms(module))
        assert all(isinstance(child, kind) for pair in pairs for child, kind in zip(pair, order, strict=True))


def test_vgg_after_normalises_what_the_relu_lets_through() -> None:
    seen: list[torch.Tensor] = []
    module = vgg_after().eval()
    for norm in batch_norms(module):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(torch.rand(3, 1, 8, 8))
    assert len(seen) == 4
    assert all(tensor.min() == 0 for tensor in seen)


def test_a_repvgg_block_has_an_identity_only_where_the_shape_stays() -> None:
    assert RepVGGBlock(4, 4, 1, Norm()).identity is not None
    assert RepVGGBlock(4, 4, 2, Norm()).identity is None
    assert RepVGGBlock(3, 4, 1, Norm()).identity is None


def test_the_unet_upsamples_with_and_without_groups() -> None:
    transposed = [part for part in unet().modules() if isinstance(part, nn.ConvTranspose2d)]
    assert [part.groups for part in transposed] == [1, 4]
    assert transposed[1].in_channels != transposed[1].out_channels


def test_arguments_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="placement 'behind': expected 'before' or 'after'"):
        cnn(placement="behind")
    with pytest.raises(ValueError, match="kernel 4: expected an odd number"):
        conv1d_tcn(kernel=4)
