import math

import pytest
import torch
from torch import nn

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.ops.acr import TRANSFORMS, consistency_losses, patch_permutation, transform_images
from cam_pipeline.training.objectives.acr import AcrObjective
from cam_pipeline.training.objectives.classification import classification_loss
from cam_pipeline.training.objectives.sfc import SfcObjective


def settings(**values):
    return Config.model_validate({"acr": values})


def acr(classifier, **values):
    return AcrObjective(classifier, settings(**values), torch.zeros(0, 3))


@pytest.fixture
def loss_of(terms_of):
    """Makes the loss with ACR; further values are its settings."""

    def make(classifier, images, progress=1.0, **values):
        return terms_of(classifier, images, acr(classifier, **values), progress=progress)["loss"]

    return make


def test_two_views_at_a_zero_head_cost_two_logarithms(vit, square, loss_of):
    classifier = vit()
    nn.init.zeros_(classifier.head.weight)
    loss = loss_of(classifier, square(), activation_weight=0.0, affinity_weight=0.0)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_loss_is_classification_of_both_views_and_the_weighted_distances(vit, square, labels, terms_of, kind):
    classifier, images = vit(), square()
    views = [images, transform_images(images, kind)]
    with torch.no_grad(), AttentionTap(classifier, [0, 2]) as tap:
        outputs, maps = [], []
        for view in views:
            outputs.append(classifier(view).logits)
            maps.append(torch.stack(tap.take(), dim=1))
        activation, affinity = consistency_losses(*maps, patch_permutation(kind, 3, 3), classifier.prefix_tokens)
    own, transformed = (classification_loss(logits, labels).mean() for logits in outputs)
    method = acr(classifier, transforms=(kind,), layers=(0, -1), activation_weight=0.5, affinity_weight=2.0, ramp=0.8)
    terms = terms_of(classifier, images, method, progress=0.6)
    expected = {
        "loss": own + transformed + 0.75 * 9 * (0.5 * activation + 2.0 * affinity),
        "classification": own,
        "acr.classification": transformed,
        "acr.activation": 0.75 * 9 * 0.5 * activation,
        "acr.affinity": 0.75 * 9 * 2.0 * affinity,
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6)
    assert activation > 1e-4 and affinity > 1e-4


def test_the_default_weight_is_the_papers_alpha_at_its_size():
    assert settings().acr.activation_weight * 576 == pytest.approx(125, abs=0.01)
    assert settings().acr.affinity_weight * 576 == pytest.approx(125, abs=0.01)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_network_that_follows_the_transform_is_consistent(vit, square, loss_of, kind):
    """Constant patches look alike in every view, so without positions only their order differs."""
    images = square(6).repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :48, :48]
    weights = {"activation_weight": 1.0, "affinity_weight": 1.0, "transforms": (kind,)}
    without = {"activation_weight": 0.0, "affinity_weight": 0.0, "transforms": (kind,)}
    for positions, most, least in ((False, 1e-4, 0.0), (True, 10.0, 0.01)):
        classifier = vit(positions).eval()
        with torch.no_grad():
            for term in ("activation_weight", "affinity_weight"):
                more = loss_of(classifier, images, **{**weights, term: 2.0})
                extra = more - loss_of(classifier, images, **weights)
                assert least <= extra.abs().item() <= most
            extra = loss_of(classifier, images, **weights) - loss_of(classifier, images, **without)
            logits = [classifier(view).logits for view in (images, transform_images(images, kind))]
        assert least <= extra.abs().item() <= most
        assert torch.allclose(*logits, rtol=0, atol=1e-4) != positions


def test_the_weights_rise_over_the_ramp(vit, square, loss_of):
    classifier, images = vit().eval(), square()
    none = loss_of(classifier, images, activation_weight=0.0, affinity_weight=0.0)
    whole = loss_of(classifier, images) - none
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)):
        risen = loss_of(classifier, images, progress, ramp=0.4) - none
        torch.testing.assert_close(risen, share * whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss_of(classifier, images, 0.0) - none, whole)


def test_swapping_the_views_changes_nothing(vit, square, loss_of):
    classifier, images = vit().eval(), square()
    torch.testing.assert_close(loss_of(classifier, images), loss_of(classifier, images.flip(-1)), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_block(vit, square, loss_of):
    classifier = vit()
    loss_of(classifier, square()).backward()
    for block in classifier.backbone.blocks:
        assert block.attn.qkv.weight.grad.abs().sum() > 0


def test_one_of_the_transforms_is_drawn_from_the_seed_of_the_step(vit, square, loss_of):
    classifier, images = vit().eval(), square()
    singles = [loss_of(classifier, images, transforms=(kind,)).item() for kind in TRANSFORMS]
    drawn = []
    for seed in range(12):
        torch.manual_seed(seed)
        drawn.append(loss_of(classifier, images, transforms=TRANSFORMS).item())
        torch.manual_seed(seed)
        assert loss_of(classifier, images, transforms=TRANSFORMS).item() == drawn[-1]
    assert {min(range(3), key=lambda kind: abs(singles[kind] - value)) for value in drawn} == {0, 1, 2}
    assert all(min(abs(single - value) for single in singles) < 1e-5 for value in drawn)


def test_bfloat16_is_close(vit, square, loss_of):
    classifier, images = vit().eval(), square()
    usual = loss_of(classifier, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(classifier, images).item() == pytest.approx(usual.item(), rel=0.05)


def test_the_classifier_is_left_as_it_came(vit, square, loss_of):
    classifier = vit()
    loss_of(classifier, square(), layers=(1,))
    assert all(block.attn.fused_attn for block in classifier.backbone.blocks)
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_what_cannot_be_is_said(vit):
    with pytest.raises(ConfigError, match=r"objectives\.acr compares attention between patches, but ResNet has no"):
        acr(build_classifier("test_resnet", 3))
    with pytest.raises(ConfigError, match=r"acr\.layers: there is no block 3"):
        acr(vit(), layers=(3,))
    for name in ("vit_little_patch16_reg4_gap_256", "vit_medium_patch16_rope_reg1_gap_256"):
        with pytest.raises(ConfigError, match=r"compares what the class token attends to, and '.*' has none"):
            acr(build_classifier(name, 3, arguments={"depth": 1}))


def test_acr_and_sfc_together_are_the_sum_of_their_parts(vit, square, labels, terms_of):
    classifier, images = vit().eval(), square(64)
    classifier.add_calibration()
    methods = [SfcObjective(classifier, settings().sfc, torch.ones(3)), acr(classifier)]
    both = terms_of(classifier, images, *methods)
    calibrated, consistent = (terms_of(classifier, images, method) for method in methods)
    own = classification_loss(classifier(images).logits, labels).mean()
    torch.testing.assert_close(both["loss"], consistent["loss"] + calibrated["loss"] - own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["classification"], own / 2)
    for name, value in both.items():
        if "." in name:
            torch.testing.assert_close(value, (consistent | calibrated)[name], rtol=1e-4, atol=1e-5)
    assert all(not module._forward_hooks for module in classifier.modules())
