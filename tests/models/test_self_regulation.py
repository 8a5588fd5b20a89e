import pytest
import torch

from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.models.self_regulation import ExitHead, Exits, PyramidTap, exit_levels

WIDTHS = (64, 256, 512, 1024)
"""Of a ResNet-101 from the stem on, as in the specification."""


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_number_of_parameters_of_the_specification():
    released = [ExitHead(width, 21, light=False) for width in WIDTHS]
    assert [count(head) for head in released] == [744_675, 1_187_043, 1_776_867, 2_956_515]
    assert sum(map(count, released)) == 6_665_100
    light = [ExitHead(width, 21) for width in WIDTHS]
    assert sum(count(head) - count(head.presence) for head in light) == 142_932


@pytest.mark.parametrize("light", [True, False])
def test_shapes_of_exits(light):
    exits = Exits([8, 16, 24], 5, light)
    levels = [torch.randn(2, 8, 7, 9), torch.randn(2, 16, 4, 5), torch.randn(2, 24, 4, 5)]
    hidden = 64 if light else 256
    found = exits(levels, torch.randn(2, 5, 28, 36))
    assert [tuple(one.features.shape) for one in found] == [(2, hidden, 7, 9), (2, hidden, 4, 5), (2, hidden, 4, 5)]
    assert [tuple(one.logits.shape) for one in found] == [(2, 5, 7, 9), (2, 5, 4, 5), (2, 5, 28, 36)]
    assert {tuple(one.presence.shape) for one in found} == {(2, 5)}


@pytest.mark.parametrize(
    ("reductions", "shallowest", "expected"),
    [
        ([2, 4, 8, 16, 16], 2, [0, 1, 2, 3, 4]),
        ([2, 4, 8, 16, 16], 4, [1, 2, 3, 4]),
        ([4, 8, 16, 16], 8, [1, 2, 3]),
        ([4, 8, 16, 32], 2, [0, 1, 2, 3]),
    ],
)
def test_levels_with_exits(reductions, shallowest, expected):
    assert exit_levels(reductions, shallowest) == expected


def test_an_encoder_without_shallow_levels_is_refused():
    with pytest.raises(ValueError, match=r"no level but the last has a stride of 8 or more: \[4, 16\]"):
        exit_levels([4, 16], 8)


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "deeplabv2"])
@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_the_tap_reads_every_encoder_and_leaves_it_alone(architecture, encoder):
    torch.manual_seed(0)
    segmenter = build_segmenter(architecture, encoder, 4).eval()
    trunk = segmenter.pretrained_half()
    info = trunk.feature_info
    levels = exit_levels(info.reduction(), 4)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        before = segmenter(images)
        with PyramidTap(trunk, levels) as tap:
            during = segmenter(images)
        seen = tap.take()
        after = segmenter(images)
    assert torch.equal(before, during) and torch.equal(before, after)
    strides = [info.reduction()[level] for level in levels]
    assert [tuple(level.shape[-2:]) for level in seen] == [(64 // stride, 96 // stride) for stride in strides]
    assert [level.shape[1] for level in seen] == [info.channels()[level] for level in levels]
    assert tap.take() == [] and not trunk._forward_hooks
