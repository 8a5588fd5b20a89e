import pytest
import timm
import torch
from torch import nn

from cam_pipeline.models.stride import cell_offset, reduce_stride


class ToGrey(nn.Module):
    """One channel of three."""

    def forward(self, images):
        return images[:, :1]


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


@pytest.mark.parametrize(
    ("name", "arguments", "pixels"),
    [
        ("resnet18", {}, -15.5),  # five layers padded on both sides: -1/2 - 1 - 2 - 4 - 8
        ("mobilenetv2_050", {}, -15.5),
        ("mobilenetv2_050", {"pad_type": "same"}, 15.5),  # padded as TensorFlow does: right and below
        ("resnet18d", {}, -8.5),  # three of its shortcuts pool 2 x 2 pixels, evenly: -1/2 - 1 - (2 + 4 + 8) / 2
        ("densenet121", {}, -1.5),  # a convolution and a pooling, then even poolings
        ("test_convnext", {}, 0),  # 4 x 4 and 2 x 2 pixels: even divisions
        ("vgg11", {}, 0),
        ("test_vit", {}, 0),
        ("pvt_v2_b0", {}, -15.5),  # its attention shrinks keys, too, but that moves no cell
        ("legacy_seresnet18", {}, -13.5),  # its pooling is padded right and below
        ("mobilenetv4_hybrid_medium", {}, -15.5),
    ],
)
def test_cell_offset_in_pixels(name, arguments, pixels):
    dynamic = {"dynamic_img_size": True} if "vit" in name else {}
    backbone = create(name, **arguments, **dynamic).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert cell_offset(backbone, 16 if "vit" in name else 32) == pytest.approx(pixels)
    assert backbone.training and not any(module._forward_hooks for module in backbone.modules())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_cell_offset_after_reducing_the_stride():
    backbone = create("mobilenetv2_050", pad_type="same")
    reduce_stride(backbone, 16)
    assert cell_offset(backbone, 16) == 7.5  # 1/2 + 1 + 2 + 4


def test_cell_offset_is_where_a_point_shows():
    """Seen from outside: where every pixel counts alike, the centre of mass of a point's response is off by it."""
    network = nn.Sequential(*[nn.Conv2d(1, 1, 3, 2, 1, bias=False) for _ in range(3)])
    hat = torch.tensor([1.0, 2.0, 1.0])
    for layer in network:
        layer.weight.data[0, 0] = torch.outer(hat, hat) / 4
    network.forward_features = network.forward
    image = torch.zeros(1, 1, 256, 256)
    image[..., 121, 66] = 1
    with torch.no_grad():
        response = network(image)[0, 0]
    centre = float((response.sum(dim=1) / response.sum() * torch.arange(32)).sum()) * 8 + 3.5
    network.insert(0, ToGrey())
    assert cell_offset(network, 8) == -3.5
    assert centre + cell_offset(network, 8) == pytest.approx(121, abs=1e-3)
