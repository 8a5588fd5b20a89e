import pytest
import torch

from cam_pipeline.models.dfr import ConsistencyHead, channels_first
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.models.self_regulation import PyramidTap, exit_levels

SWIN = (128, 256, 512, 1024)
"""Channels of a Swin-B, as in the specification."""


def test_number_of_weights_of_the_specification():
    head = ConsistencyHead(SWIN, 64)
    weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    assert sum(map(torch.numel, weights)) == 139_264


@pytest.mark.parametrize("last", [False, True])
def test_features_are_of_the_grid_that_is_asked_for(last):
    """Levels of a CNN, and of a transformer that has its channels last."""
    torch.manual_seed(0)
    head = ConsistencyHead([8, 16], 5)
    levels = [torch.randn(2, 8, 12, 9), torch.randn(2, 16, 6, 5)]
    given = [level.permute(0, 2, 3, 1) for level in levels] if last else levels
    features = head(given, (12, 9))
    assert features.shape == (2, 5, 12, 9)
    torch.testing.assert_close(features, head(levels, (12, 9)))
    assert head(given, (6, 5)).shape == (2, 5, 6, 5)


def test_a_level_that_fits_either_way_has_its_channels_first():
    square = torch.randn(1, 8, 3, 8)
    assert channels_first(square, 8) is square


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "deeplabv2"])
@pytest.mark.parametrize("encoder", ["resnet10t", "mobilevit_xxs"])
def test_it_reads_every_encoder_of_a_segmenter(architecture, encoder):
    """A CNN, and one with transformer blocks."""
    segmenter = build_segmenter(architecture, encoder, 4)
    trunk = segmenter.pretrained_half()
    levels = exit_levels(trunk.feature_info.reduction(), 4)
    head = ConsistencyHead([trunk.feature_info.channels()[level] for level in levels], 6)
    with PyramidTap(trunk, levels) as tap:
        segmenter(torch.rand(2, 3, 64, 64))
    features = head(tap.take(), (16, 16))
    features.square().mean().backward()
    assert features.shape == (2, 6, 16, 16)
    assert all(parameter.grad is not None for parameter in head.parameters())
