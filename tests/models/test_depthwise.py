import copy

import pytest
import timm
import torch
from torch import nn

from cam_pipeline.models.depthwise import keep_depthwise_in_float32


def depthwise(**arguments):
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, 3, groups=4, bias=False, **arguments)


@pytest.fixture
def images():
    return torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("arguments", [{"stride": 2}, {"dilation": 2}])
def test_training_under_autocast_computes_in_float32_and_keeps_the_type(arguments, images):
    network, plain = nn.Sequential(depthwise(**arguments)), depthwise(**arguments)
    keep_depthwise_in_float32(network)
    keep_depthwise_in_float32(network)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = network(images), plain(images)
    exact = plain(images.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.float().sum().backward()
    exact.sum().backward()
    assert torch.equal(network[0].weight.grad, plain.weight.grad)
    assert rounded.dtype == torch.bfloat16


def test_without_gradients_or_autocast_nothing_changes(images):
    network, plain = nn.Sequential(depthwise(stride=2)), depthwise(stride=2)
    keep_depthwise_in_float32(network)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images.float()), plain(images.float()))
    assert torch.equal(network(images.float()), plain(images.float()))
    assert list(network.state_dict()) == ["0.weight"]


def test_other_convolutions_are_left_alone():
    network = nn.Sequential(depthwise(), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(4, 4, 3, 2, groups=2))
    keep_depthwise_in_float32(network)
    assert {type(module) for module in network} == {nn.Conv2d}


def test_a_copy_computes_with_its_own_weights(images):
    network = nn.Sequential(depthwise(stride=2))
    keep_depthwise_in_float32(network)
    twin = copy.deepcopy(network)
    nn.init.zeros_(network[0].weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert twin(images).abs().sum() > 0


def test_timm_convolutions_keep_their_padding():
    backbone = timm.create_model("mobilenetv2_050", pad_type="same", num_classes=0).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = backbone(images)
    keep_depthwise_in_float32(backbone)
    changed = [module for module in backbone.modules() if type(module).__name__ == "Float32Conv2dSame"]
    assert len(changed) == 4
    torch.testing.assert_close(backbone(images), before)
