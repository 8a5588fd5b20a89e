"""One network that classifies and segments, over backbones with and without attention."""

import pytest
import torch
import torch.nn.functional as F

from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.models.single_stage import SingleStage, SingleStageSegmenter

CNN = ("resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8})
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 3}


def build(kind, **more):
    torch.manual_seed(0)
    if kind == "cnn":
        classifier = build_classifier(CNN[0], 2, arguments=CNN[1], stride=16)
    else:
        trunk = Trunk(CNN[0], CNN[1], "none")
        classifier = build_classifier("vit_tiny_patch16_224", 2, arguments=VIT, stride=16, trunk=trunk)
    return SingleStage(classifier, 3, width=8, **more)


def images():
    return torch.randint(0, 256, (2, 3, 48, 80), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("kind", ["cnn", "hybrid"])
def test_one_pass_classifies_segments_and_compares_cells(kind):
    network = build(kind).eval()
    found = network(images())
    assert found.features.shape[-2:] == (3, 5) and found.logits.shape == (2, 2)
    assert found.segmentation.shape == (2, 3, 12, 20)
    assert (found.affinity is None) == (kind == "cnn")
    if found.affinity is not None:
        assert found.affinity.shape == (2, 15, 15)
        torch.testing.assert_close(found.affinity, found.affinity.transpose(1, 2))
        assert build(kind, symmetric=False).eval()(images()).affinity.ne(found.affinity).any()
    without = network.see(images())
    assert without.affinity is None
    torch.testing.assert_close(without.segmentation, found.segmentation)
    torch.testing.assert_close(without.logits, network.classifier(images()).logits)


def test_affinity_that_is_not_asked_for_has_no_layers():
    assert build("hybrid", affinity=False).affinity is None
    assert not any("affinity" in name for name in build("hybrid", affinity=False).state_dict())


def test_as_a_segmenter_it_answers_at_the_size_of_the_images():
    network = build("hybrid").eval()
    segmenter = SingleStageSegmenter(network).eval()
    assert segmenter.multiple == 16
    expected = F.interpolate(network(images()).segmentation, (48, 80), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmenter(images()), expected)
    assert segmenter.normalize.fill == network.classifier.normalize.fill


def test_new_layers_learn_faster_and_every_parameter_once():
    network = build("hybrid")
    factors = list(network.learning_rate_factors(10.0))
    assert sorted(id(parameter) for parameter, _ in factors) == sorted(id(one) for one in network.parameters())
    by_id = {id(parameter): factor for parameter, factor in factors}
    assert {by_id[id(one)] for one in network.decoder.parameters()} == {10.0}
    assert {by_id[id(one)] for one in network.affinity.parameters()} == {10.0}
    assert 1.0 in {by_id[id(one)] for one in network.classifier.parameters()}


def test_gradients_of_the_answer_reach_the_backbone_and_not_the_classifiers_head():
    network = build("hybrid")
    found = network(images())
    (found.segmentation.square().mean() + found.affinity.mean()).backward()
    assert network.classifier.head.weight.grad is None
    assert any(one.grad is not None and one.grad.any() for one in network.classifier.backbone.parameters())
