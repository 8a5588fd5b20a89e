import pytest
import timm
import torch
from torch import nn

from cam_pipeline.models.stride import reduce_stride


def create(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **arguments).eval()


def strides(backbone):
    return [module.stride for module in backbone.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {}), ("resnet18d", {}), ("resnetblur18", {}), ("mobilenetv2_050", {"pad_type": "same"}),
     ("test_convnext", {}), ("densenet121", {})],
)  # fmt: skip
def test_weights_and_dilation_stay(name, arguments):
    backbone, untouched = create(name, **arguments), create(name, **arguments)
    reduce_stride(backbone, 8)
    state, before = backbone.state_dict(), untouched.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[key], before[key]) for key in before)
    assert {module.dilation for module in backbone.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}
    assert not any(module._forward_hooks for module in backbone.modules())
    with torch.no_grad():
        assert backbone.forward_features(torch.rand(1, 3, 64, 96)).shape[2:] == (8, 12)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4.0.conv1"),
        ("resnet18", "layer4.0.downsample.0"),
        ("test_convnext", "stages.3.downsample.1"),  # 2 x 2 pixels
    ],
)
def test_an_undone_layer_gives_the_old_cells_and_those_between(name, layer):
    """Every second output of the layer at stride 1 is what it gave at stride 2."""
    seen = []

    def output(backbone):
        backbone.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
        with torch.no_grad():
            backbone.forward_features(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)))

    output(create(name))
    backbone = create(name)
    reduce_stride(backbone, 16)
    output(backbone)
    coarse, fine = seen
    assert coarse.shape[2:] == (2, 3) and fine.shape[2:] == (4, 6)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-4, atol=1e-5)


def test_only_late_strides_are_undone():
    backbone = create("resnet18")
    before = strides(backbone)
    reduce_stride(backbone, 16)
    changed = [number for number, pair in enumerate(zip(before, strides(backbone), strict=True)) if len({*pair}) > 1]
    assert len(changed) == 2, "the first convolution and the shortcut of layer 4"
    assert min(changed) > len(before) // 2


def test_its_own_stride_changes_nothing():
    backbone = create("resnet18")
    before = strides(backbone)
    reduce_stride(backbone, 32)
    assert strides(backbone) == before


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18", 64), ("resnet18", 12), ("test_vit", 8), ("hrnet_w18_small", 16), ("levit_128s", 8)],
)
def test_a_stride_out_of_reach_is_refused_and_the_mode_restored(name, stride):
    backbone = create(name).train()
    with pytest.raises(ValueError, match=f"cannot be brought to stride {stride}"):
        reduce_stride(backbone, stride)
    assert backbone.training
    assert not any(module._forward_hooks for module in backbone.modules())
