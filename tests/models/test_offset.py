import pytest
import timm
import torch
from torch import nn

from cam_pipeline.models import offset
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.offset import NoPosition, cell_offset
from cam_pipeline.models.stride import reduce_stride
from cam_pipeline.ops.cam import place_features


class ToGrey(nn.Module):
    """One channel of three."""

    def forward(self, images):
        return images[:, :1]


class Seeing(nn.Sequential):
    """Layers with the method of timm's models."""

    def forward_features(self, images):
        return self(images)


def create(name, stride=0, **arguments):
    torch.manual_seed(0)
    dynamic = {"dynamic_img_size": True} if "vit" in name else {}
    backbone = timm.create_model(name, num_classes=0, **arguments, **dynamic).eval()
    if stride:
        reduce_stride(backbone, stride)
    return backbone


@pytest.mark.parametrize(
    ("name", "arguments", "stride", "pixels"),
    [
        ("resnet18", {}, 32, -15.5),  # five layers padded on both sides: -1/2 - 1 - 2 - 4 - 8
        ("resnet18", {}, 16, -7.5),
        ("resnet18", {}, 8, -3.5),
        ("mobilenetv2_050", {}, 32, -15.5),
        ("mobilenetv2_050", {"pad_type": "same"}, 32, 15.5),  # padded as TensorFlow does: right and below
        ("mobilenetv2_050", {"pad_type": "same"}, 16, 7.5),
        ("resnet18d", {}, 32, -8.5),  # three of its shortcuts pool 2 x 2 pixels, evenly: -1/2 - 1 - (2 + 4 + 8) / 2
        ("densenet121", {}, 32, -1.5),  # a convolution and a pooling, then even poolings
        ("test_convnext", {}, 32, 0),  # 4 x 4 and 2 x 2 pixels: even divisions
        ("test_convnext", {}, 16, 8),  # an undone layer looks at a cell and the next one: half a cell of 16 pixels
        ("test_convnext", {}, 8, 8),  # and half a cell of 8 pixels, twice
        ("inception_next_atto", {}, 16, 8),
        ("edgenext_xx_small", {}, 16, 8),
        ("test_mambaout", {}, 16, -7.5),
        ("vgg11", {}, 32, 0),
        ("resnet18", {"output_stride": 16}, 16, -7.5),  # timm's way: dilated
        ("test_vit", {}, 16, 0),
        ("pvt_v2_b0", {}, 32, -15.5),  # its attention shrinks keys, too, but that moves no cell
        ("legacy_seresnet18", {}, 32, -13.5),  # its pooling is padded right and below
        ("test_nfnet", {}, 32, -6.7),  # as resnet18d, but branches are scaled; standardised weights have mean 0
    ],
)
def test_cell_offset_in_pixels(name, arguments, stride, pixels):
    backbone = create(name, 0 if "vit" in name else stride, **arguments).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    random = torch.get_rng_state()
    with torch.inference_mode():
        assert cell_offset(backbone, stride) == pytest.approx((pixels, pixels), abs=0.2)
    assert torch.equal(random, torch.get_rng_state())
    assert backbone.training and not any(module._forward_hooks for module in backbone.modules())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in backbone.parameters())


def test_it_is_measured_along_both_axes():
    """Windows of three rows, padded on both sides, and of two columns."""
    window = nn.Conv2d(3, 4, (3, 2), 2, (1, 0))
    assert cell_offset(Seeing(window, nn.ReLU()), 2) == pytest.approx((-0.5, 0), abs=1e-3)


def test_weights_do_not_matter_and_an_architecture_is_measured_once(monkeypatch):
    measured = []
    own = offset._measure
    monkeypatch.setattr(offset, "_measured", {})
    monkeypatch.setattr(offset, "_measure", lambda *args: measured.append(args) or own(*args))
    first, second = (create("test_convnext", 16) for _ in range(2))
    with torch.no_grad():  # as trained weights would be: any
        for parameter in second.parameters():
            parameter.normal_()
    assert cell_offset(first, 16) == cell_offset(second, 16) and len(measured) == 1
    assert cell_offset(create("test_convnext"), 32) != cell_offset(first, 16) and len(measured) == 2
    measured.clear()
    offset._measured.clear()
    assert cell_offset(second, 16) == (8, 8)


def test_cell_offset_is_where_a_point_shows():
    """Seen from outside: if every pixel counts alike, the centre of mass of a point's response is off by it."""
    network = Seeing(*[nn.Conv2d(1, 1, 3, 2, 1, bias=False) for _ in range(3)])
    hat = torch.tensor([1.0, 2.0, 1.0])
    for layer in network:
        layer.weight.data[0, 0] = torch.outer(hat, hat) / 4
    image = torch.zeros(1, 1, 256, 256)
    image[..., 121, 66] = 1
    with torch.no_grad():
        response = network(image)[0, 0]
    centre = float((response.sum(dim=1) / response.sum() * torch.arange(32)).sum()) * 8 + 3.5
    network.insert(0, ToGrey())
    assert cell_offset(network, 8) == pytest.approx((-3.5, -3.5), abs=1e-3)
    assert centre - 3.5 == pytest.approx(121, abs=1e-3)


def test_a_network_that_does_not_see_its_image_has_no_position():
    class Blind(nn.Module):
        def forward_features(self, images):
            return images.new_zeros(1, 4, images.shape[2] // 8, images.shape[3] // 8) + 0 * images.sum()

    with pytest.raises(NoPosition, match="does not reach the image"):
        cell_offset(Blind(), 8)


@pytest.mark.parametrize(
    ("name", "stride"), [("test_convnext", 16), ("inception_next_atto", 16), ("edgenext_xx_small", 16)]
)
def test_maps_lie_where_the_image_changes(name, stride):
    """Seen from outside, with random weights: a square shows half a cell too far left and up until maps are placed."""
    torch.manual_seed(0)
    network = build_classifier(name, 2, stride=stride).eval()
    image = torch.full((1, 3, 16 * stride, 16 * stride), 0.5)
    changed = image.clone()
    changed[..., 5 * stride : 6 * stride, 9 * stride : 10 * stride] = 0.9
    with torch.no_grad():
        change = (network(changed).features - network(image).features).square().sum(dim=1, keepdim=True)
    assert centre(change) == pytest.approx((5.0, 9.0), abs=0.15)
    assert centre(place_features(change, (16, 16), network.offset)) == pytest.approx((5.5, 9.5), abs=0.15)


def centre(change):
    """Centre of a map (1, 1, h, w), in cells."""
    weight = (change[0, 0] - change.median()).clamp_min(0)
    at = torch.arange(16) + 0.5
    rows, columns = weight.sum(dim=1), weight.sum(dim=0)
    return float((rows * at).sum() / rows.sum()), float((columns * at).sum() / columns.sum())
