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
from models.convmixer import convmixer
from models.dcgan import dcgan
from models.densenet import densenet
from models.dpn import dpn
from models.ecanet import ecanet
from models.efficientvit import efficientvit
from models.fastvit import fastvit
from models.frozen_resnet import FrozenBatchNorm2d, frozen_resnet
from models.levit import levit
from models.mixnet import mixnet
from models.mlp import mlp
from models.mobilenet import mobilenet
from models.mobileone import MobileOneBlock, mobileone
from models.nasnet import nasnet
from models.preact_resnet import preact_resnet
from models.pyramidnet import pyramidnet
from models.r3d import r3d
from models.repvgg import RepVGGBlock, repvgg
from models.repvit import repvit
from models.resnet import resnet
from models.resnetv2 import resnetv2
from models.senet import senet
from models.shufflenet import shufflenet
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
    mobileone,
    fastvit,
    repvit,
    dpn,
    resnetv2,
    pyramidnet,
    convmixer,
    levit,
    efficientvit,
    nasnet,
    mixnet,
    senet,
    ecanet,
    shufflenet,
]
# Those that take or give something else than an image and its classes: the shapes of one input and of its output.
OTHERS: dict[Factory, tuple[tuple[int, ...], tuple[int, ...]]] = {
    unet: ((1, 8, 8), (1, 8, 8)),
    r3d: ((1, 4, 8, 8), (10,)),
    dcgan: ((7,), (1, 16, 16)),
}
PLACED: list[Factory] = [mlp, cnn, unet, conv1d_tcn, dcgan]

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
    (repvgg, {"channels": [6, 10], "depth": [1, 3], "stride": 2}, (1, 11, 9), (10,)),
    (mobileone, {"channels": [5, 6], "scale": 1.6, "depths": [2, 1], "branches": 4, "se": True}, (1, 31, 9), (10,)),
    (fastvit, {"channels": [4, 8, 16], "depths": [1, 1, 1], "expansion": 2, "classes": 4}, (1, 33, 31), (4,)),
    (repvit, {"in_channels": 3, "channels": [4, 6, 7], "depths": [1, 2, 3], "classes": 4}, (3, 33, 31), (4,)),
    (dpn, {"in_channels": 3, "stem": 4, "channels": [5], "growth": 2, "depth": 3, "groups": 3}, (3, 7, 9), (10,)),
    (resnetv2, {"in_channels": 3, "stem": 8, "channels": [2, 3, 4], "depth": 1, "classes": 4}, (3, 11, 9), (4,)),
    (pyramidnet, {"channels": 5, "widening": 3, "depth": 1, "stages": 3, "classes": 4}, (1, 11, 9), (4,)),
    (convmixer, {"channels": 5, "depth": 1, "kernel": 9, "patch": 3, "activation": "gelu"}, (1, 11, 9), (10,)),
    (levit, {"in_channels": 3, "channels": [4, 6, 7], "depth": 1, "heads": 2, "key": 3}, (3, 21, 17), (10,)),
    (efficientvit, {"channels": [6, 9], "depth": 2, "heads": 3, "key": 5, "classes": 4}, (1, 11, 9), (4,)),
    (nasnet, {"in_channels": 3, "stem": 4, "channels": 2, "depth": 2, "stages": 3}, (3, 11, 9), (10,)),
    (mixnet, {"channels": [5, 6], "depth": 1, "expansion": 3, "kernels": [3, 9]}, (1, 11, 9), (10,)),
    (senet, {"in_channels": 3, "channels": [6, 5], "depth": 1, "reduction": 3, "classes": 4}, (3, 11, 9), (4,)),
    (ecanet, {"in_channels": 3, "channels": [6, 5], "depth": 1, "kernel": 5, "classes": 4}, (3, 11, 9), (4,)),
    (shufflenet, {"stem": 3, "channels": [4, 6, 8], "depth": 3, "classes": 4}, (1, 11, 9), (4,)),
    (frozen_resnet, {"in_channels": 3, "channels": [6, 5, 4], "depth": 2, "classes": 4}, (3, 11, 9), (4,)),
    (r3d, {"in_channels": 3, "channels": [4, 5], "depth": 2, "classes": 4}, (3, 5, 7, 9), (4,)),
    (dcgan, {"latent": 3, "channels": [6, 5, 4], "out_channels": 3}, (3,), (3, 32, 32)),
]


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def is_norm_and_relu(part: nn.Sequential) -> bool:
    return len(part) == 2 and any(isinstance(child, nn.ReLU) for child in part)


def name(value: object) -> str | None:
    return value.__name__ if inspect.isfunction(value) else None


@pytest.mark.parametrize("factory", CLASSIFIERS, ids=name)
def test_a_classifier_takes_digits_by_default(factory: Factory) -> None:
    module = factory().eval()
    assert [module(torch.rand(batch, 1, 8, 8)).shape for batch in (1, 7)] == [(1, 10), (7, 10)]


@pytest.mark.parametrize("factory", OTHERS, ids=name)
def test_what_is_no_classifier_of_images(factory: Factory) -> None:
    one, answer = OTHERS[factory]
    module = factory().eval()
    assert [module(torch.rand(batch, *one)).shape for batch in (1, 7)] == [(1, *answer), (7, *answer)]


@pytest.mark.parametrize(("factory", "arguments", "one", "answer"), OTHER_SIZES, ids=name)
def test_other_sizes(
    factory: Factory, arguments: dict[str, object], one: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    module = factory(**arguments).eval()
    assert [module(torch.rand(batch, *one)).shape for batch in (1, 5)] == [(1, *answer), (5, *answer)]


@pytest.mark.parametrize("factory", [*CLASSIFIERS, *OTHERS], ids=name)
def test_every_batchnorm_gets_momentum_and_eps_and_is_used(factory: Factory) -> None:
    module = factory(momentum=0.25, eps=0.003)
    norms = batch_norms(module)
    assert len(norms) >= 2
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.25, 0.003)}
    one, _ = OTHERS.get(factory, ((1, 8, 8), ()))
    module.train()(torch.rand(4, *one))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0, "this BatchNorm saw no batch"


@pytest.mark.parametrize("factory", [*CLASSIFIERS, *OTHERS], ids=name)
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


def test_a_mobileone_block_has_the_branches_that_fit_its_shape() -> None:
    def kinds(block: MobileOneBlock) -> list[tuple[int, ...] | None]:
        return [part[0].kernel_size if isinstance(part, nn.Sequential) else None for part in block.branches]

    assert kinds(MobileOneBlock(4, 4, 3, Norm(), branches=2)) == [(3, 3), (3, 3), (1, 1), None]
    assert kinds(MobileOneBlock(4, 4, 3, Norm(), stride=2)) == [(3, 3), (1, 1)]
    assert kinds(MobileOneBlock(4, 6, 1, Norm(), branches=2)) == [(1, 1), (1, 1)]
    assert kinds(MobileOneBlock(4, 4, 3, Norm(), branches=0, pointwise=False)) == [None]


def test_published_sizes_have_the_published_number_of_batchnorms() -> None:
    with torch.device("meta"):
        mobileone_s0 = mobileone(channels=(48, 128, 256, 1024), depths=(2, 8, 10, 1), branches=4)
        repvgg_a0 = repvgg(channels=(48, 48, 96, 192, 1280), depth=(1, 2, 4, 14, 1), stride=2)
        fastvit_t8 = fastvit(channels=(48, 96, 192, 384), depths=(2, 2, 4, 2))
        repvit_m0_9 = repvit(channels=(48, 96, 192, 384), depths=(3, 3, 15, 2))
    assert [len(batch_norms(m)) for m in (mobileone_s0, repvgg_a0, fastvit_t8, repvit_m0_9)] == [226, 61, 70, 108]


def test_a_frozen_batchnorm_computes_what_a_batchnorm_does() -> None:
    norm = nn.BatchNorm2d(3, eps=0.01).eval()
    frozen = FrozenBatchNorm2d(3, eps=0.01)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.copy_(torch.rand(3))
    assert frozen.load_state_dict(norm.state_dict(), strict=False).missing_keys == []
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(frozen(x), norm(x))
    module = frozen_resnet()
    assert not batch_norms(module)
    assert not any("bn" in name or "running" in name for name, _ in module.named_parameters())


def test_the_unet_upsamples_with_and_without_groups() -> None:
    transposed = [part for part in unet().modules() if isinstance(part, nn.ConvTranspose2d)]
    assert [part.groups for part in transposed] == [1, 4]
    assert transposed[1].in_channels != transposed[1].out_channels


def test_arguments_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="placement 'behind': expected 'before' or 'after'"):
        cnn(placement="behind")
    with pytest.raises(ValueError, match="kernel 4: expected an odd number"):
        conv1d_tcn(kernel=4)
    with pytest.raises(ValueError, match="activation 'tanh': expected 'relu' or 'gelu'"):
        convmixer(activation="tanh")
    for factory in (mobileone, fastvit, repvit):
        with pytest.raises(ValueError, match="zip"):
            factory(channels=(6, 12), depths=(1,))
