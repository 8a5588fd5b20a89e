import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.levels import LevelTap
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.ops.acr import TRANSFORMS, consistency_losses, patch_permutation, transform_images
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.ops.sfc import msdw_losses, peak_normalized
from cam_pipeline.training.objectives.base import classification_loss
from cam_pipeline.training.objectives.image_loss import image_loss
from cam_pipeline.training.objectives.sfc import inside

LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def settings(acr=True, **values):
    return Config.model_validate({"objectives": {"acr": acr}, "acr": values})


def vit(positions=True, seed=0):
    """Attention far from uniform; without position embedding the network follows every transform of its patches."""
    torch.manual_seed(seed)
    classifier = build_classifier(
        "deit_tiny_distilled_patch16_224", 3, arguments={"depth": 3, "pos_embed": "learn"}, pooling="class_token"
    )
    nn.init.normal_(classifier.head.weight)
    for block in classifier.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.1)
    nn.init.normal_(classifier.backbone.pos_embed, std=1.0 if positions else 0.0)
    return classifier


def square(side=48):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def loss_of(classifier, images, config, progress=1.0):
    return image_loss(classifier, config)(images, LABELS, whole(images), progress)


def whole(images):
    """Boxes of images that fill their crop."""
    height, width = images.shape[-2:]
    return torch.tensor([[0, 0, height, width]] * len(images))


def test_without_objectives_it_is_the_soft_margin_loss():
    classifier = vit()
    expected = classification_loss(classifier(square()).logits, LABELS)
    torch.testing.assert_close(loss_of(classifier, square(), settings(acr=False)), expected)
    assert classification_loss(torch.zeros(2, 3), LABELS).item() == pytest.approx(math.log(2))


def test_two_views_at_a_zero_head_cost_two_logarithms():
    classifier = vit()
    nn.init.zeros_(classifier.head.weight)
    config = settings(activation_weight=0.0, affinity_weight=0.0)
    assert loss_of(classifier, square(), config).item() == pytest.approx(2 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_loss_is_classification_of_both_views_and_the_weighted_distances(kind):
    classifier, images = vit(), square()
    views = [images, transform_images(images, kind)]
    with torch.no_grad(), AttentionTap(classifier, [0, 2]) as tap:
        outputs, maps = [], []
        for view in views:
            outputs.append(classifier(view).logits)
            maps.append(torch.stack(tap.take(), dim=1))
        activation, affinity = consistency_losses(*maps, patch_permutation(kind, 3, 3), classifier.prefix_tokens)
    expected = sum(classification_loss(logits, LABELS) for logits in outputs) + 9 * (0.5 * activation + 2.0 * affinity)
    config = settings(transforms=(kind,), layers=(0, -1), activation_weight=0.5, affinity_weight=2.0)
    torch.testing.assert_close(loss_of(classifier, images, config), expected, rtol=1e-5, atol=1e-6)
    assert activation > 1e-4 and affinity > 1e-4


def test_the_default_weight_is_the_papers_alpha_at_its_size():
    assert settings().acr.activation_weight * 576 == pytest.approx(125, abs=0.01)
    assert settings().acr.affinity_weight * 576 == pytest.approx(125, abs=0.01)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_network_that_follows_the_transform_is_consistent(kind):
    """Constant patches look alike in every view, so without positions only their order differs."""
    images = square(6).repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :48, :48]
    weights = {"activation_weight": 1.0, "affinity_weight": 1.0, "transforms": (kind,)}
    without = settings(activation_weight=0.0, affinity_weight=0.0, transforms=(kind,))
    for positions, most, least in ((False, 1e-4, 0.0), (True, 10.0, 0.01)):
        classifier = vit(positions).eval()
        with torch.no_grad():
            for term in ("activation_weight", "affinity_weight"):
                one = settings(**{**weights, term: 2.0}), settings(**weights)
                extra = loss_of(classifier, images, one[0]) - loss_of(classifier, images, one[1])
                assert least <= extra.abs().item() <= most
            extra = loss_of(classifier, images, settings(**weights)) - loss_of(classifier, images, without)
            logits = [classifier(view).logits for view in (images, transform_images(images, kind))]
        assert least <= extra.abs().item() <= most
        assert torch.allclose(*logits, rtol=0, atol=1e-4) != positions


def test_the_weights_rise_over_the_ramp():
    classifier, images = vit().eval(), square()
    none = loss_of(classifier, images, settings(activation_weight=0.0, affinity_weight=0.0))
    whole = loss_of(classifier, images, settings()) - none
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)):
        risen = loss_of(classifier, images, settings(ramp=0.4), progress) - none
        torch.testing.assert_close(risen, share * whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss_of(classifier, images, settings(), 0.0) - none, whole)


def test_swapping_the_views_changes_nothing():
    classifier, images = vit().eval(), square()
    torch.testing.assert_close(
        loss_of(classifier, images, settings()), loss_of(classifier, images.flip(-1), settings()), rtol=1e-5, atol=1e-5
    )


def test_gradients_reach_every_block():
    classifier = vit()
    loss_of(classifier, square(), settings()).backward()
    for block in classifier.backbone.blocks:
        assert block.attn.qkv.weight.grad.abs().sum() > 0


def test_one_of_the_transforms_is_drawn_from_the_seed_of_the_step():
    classifier, images = vit().eval(), square()
    config = settings(transforms=TRANSFORMS)
    singles = [loss_of(classifier, images, settings(transforms=(kind,))).item() for kind in TRANSFORMS]
    drawn = []
    for seed in range(12):
        torch.manual_seed(seed)
        drawn.append(loss_of(classifier, images, config).item())
        torch.manual_seed(seed)
        assert loss_of(classifier, images, config).item() == drawn[-1]
    assert {min(range(3), key=lambda kind: abs(singles[kind] - value)) for value in drawn} == {0, 1, 2}
    assert all(min(abs(single - value) for single in singles) < 1e-5 for value in drawn)


def test_bfloat16_is_close():
    classifier, images = vit().eval(), square()
    usual = loss_of(classifier, images, settings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(classifier, images, settings()).item() == pytest.approx(usual.item(), rel=0.05)


def test_the_classifier_is_left_as_it_came():
    classifier = vit()
    loss_of(classifier, square(), settings(layers=(1,)))
    assert all(block.attn.fused_attn for block in classifier.backbone.blocks)
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_what_can_not_be_is_said():
    with pytest.raises(ConfigError, match=r"objectives\.acr compares attention between patches, but ResNet has no"):
        loss_of(build_classifier("test_resnet", 3), square(), settings())
    with pytest.raises(ConfigError, match=r"acr\.layers: there is no block 3"):
        loss_of(vit(), square(), settings(layers=(3,)))
    for name in ("vit_little_patch16_reg4_gap_256", "vit_medium_patch16_rope_reg1_gap_256"):
        with pytest.raises(ConfigError, match=r"compares what the class token attends to, and '.*' has none"):
            loss_of(build_classifier(name, 3, arguments={"depth": 1}), square(), settings())


# SFC


def cnn(calibrated=True, seed=0, name="resnet10t"):
    torch.manual_seed(seed)
    arguments = {"channels": [8, 16, 24, 32], "stem_width": 8}
    classifier = build_classifier(name, 3, arguments=arguments, stride=16, freeze_batch_norm=True)
    nn.init.normal_(classifier.head.weight)
    if calibrated:
        classifier.add_calibration()
    return classifier.eval()


def sfc_settings(acr=False, **values):
    return Config.model_validate({"objectives": {"sfc": True, "acr": acr}, "sfc": values})


def sfc_loss(classifier, images, progress=1.0, weights=None, boxes=None, **values):
    loss = image_loss(classifier, sfc_settings(**values), weights)
    return loss(images, LABELS, whole(images) if boxes is None else boxes, progress)


def maps_of(classifier, images, boxes=None):
    """Classifier maps and levels by the functions that have tests of their own."""
    with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        features, logits = classifier(images)
    levels = tap.take(features.shape[-2:])
    raw = classifier_cam(features, classifier.head.weight)
    valid = inside(whole(images) if boxes is None else boxes, raw.shape[-2:], classifier.stride)
    maps = classifier.calibration.classifier_maps(
        raw, classifier.normalize(images), levels[-1], LABELS, Calibration(), valid
    )
    return maps, levels, logits, valid


@pytest.mark.parametrize("boxes", [None, torch.tensor([[0, 16, 64, 64], [0, 0, 32, 64]])])
def test_sfc_is_classification_at_two_scales_and_both_distances(boxes):
    classifier, images = cnn(), square(64)
    weights = torch.tensor([0.5, 1.5, 1.0])
    small = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    maps, levels, logits, valid = maps_of(classifier, images, boxes)
    prototypes = peak_normalized(classifier.calibration.prototype_maps(maps, levels, LABELS, Calibration(), valid))
    half, _, half_logits, _ = maps_of(classifier, small, None if boxes is None else boxes / 2)
    down = F.interpolate(maps, (2, 2), mode="bilinear", align_corners=False)
    prototype, scale = msdw_losses(maps, prototypes, down, half, weights)
    classification = (classification_loss(logits, LABELS) + classification_loss(half_logits, LABELS)) / 2
    assert prototype > 0.01 and scale > 0.001
    torch.testing.assert_close(
        sfc_loss(classifier, images, weights=weights, boxes=boxes), classification + prototype + scale
    )
    own = sfc_loss(classifier, images, weights=weights, boxes=boxes, scale_weight=0.0)
    torch.testing.assert_close(own, classification_loss(logits, LABELS) + prototype)
    bank_alone = sfc_loss(classifier, images, boxes=boxes, scale_weight=0.0, prototype_weight=0.0)
    torch.testing.assert_close(bank_alone, classification_loss(logits, LABELS))


def test_sfc_weights_rise_over_the_ramp_and_are_one_unless_given():
    classifier, images = cnn(), square(64)
    none = sfc_loss(classifier, images, progress=0.0, ramp=0.5)
    whole_loss = sfc_loss(classifier, images)
    torch.testing.assert_close(sfc_loss(classifier, images, progress=0.25, ramp=0.5), (none + whole_loss) / 2)
    torch.testing.assert_close(sfc_loss(classifier, images, progress=0.5, ramp=0.5), whole_loss)
    torch.testing.assert_close(sfc_loss(classifier, images, weights=torch.ones(3)), whole_loss)


def test_sfc_gradients_go_where_the_paper_sends_them():
    """To the backbone by the classifier maps, to side layers by the prototype maps alone."""
    classifier, images = cnn(), square(64)
    sfc_loss(classifier, images, prototype_weight=0.0).backward()
    head = classifier.calibration
    assert all(side.weight.grad is None for side in head.sides)
    assert head.comparison.weight.grad.any() and classifier.backbone.layer4[0].downsample[1].weight.grad.any()
    classifier.zero_grad()
    sfc_loss(classifier, images, scale_weight=0.0).backward()
    assert all(side.weight.grad.any() for side in head.sides)


def test_sfc_of_an_empty_view_is_classification_alone():
    """What an unwritten slot of the bank gives in the released way."""
    classifier, images = cnn(), torch.zeros(2, 3, 64, 64)
    loss = image_loss(classifier, sfc_settings(scale_weight=0.0))
    nothing = torch.zeros(2, 3)
    got = loss(images, nothing, torch.zeros(2, 4, dtype=torch.int64), 1.0)
    torch.testing.assert_close(got, classification_loss(classifier(images).logits, nothing))


def test_the_bank_alone_asks_nothing_of_the_network():
    classifier, images = cnn(calibrated=False), square(64)
    classifier.backbone.feature_info = None
    got = sfc_loss(classifier, images, prototype_weight=0.0, scale_weight=0.0)
    torch.testing.assert_close(got, classification_loss(classifier(images).logits, LABELS))


def test_crops_that_have_no_half_in_whole_cells():
    classifier = cnn()
    assert sfc_loss(classifier, square(48)).isfinite()  # 3 x 3 cells, so 2 x 2
    assert sfc_loss(classifier, square(16)).isfinite()


def test_acr_and_sfc_together_are_the_sum_of_their_parts():
    classifier, images = vit().eval(), square(64)
    classifier.add_calibration()
    acr = loss_of(classifier, images, settings())
    both = image_loss(classifier, sfc_settings(acr=True))(images, LABELS, whole(images), 1.0)
    alone = sfc_loss(classifier, images)
    own = classification_loss(classifier(images).logits, LABELS)
    torch.testing.assert_close(both, acr + alone - own, rtol=1e-4, atol=1e-5)
    assert all(not module._forward_hooks for module in classifier.modules())


def test_a_split_batch_has_the_mean_loss_of_its_parts():
    """What several processes need: weights of classes do not depend on the batch."""
    classifier, images = cnn(), square(64)
    loss = image_loss(classifier, sfc_settings(), torch.tensor([0.5, 1.5, 1.0]))
    boxes = whole(images)
    parts = [loss(images[i : i + 1], LABELS[i : i + 1], boxes[i : i + 1], 1.0) for i in range(2)]
    torch.testing.assert_close(loss(images, LABELS, boxes, 1.0), torch.stack(parts).mean())


def test_cells_whose_centre_lies_in_the_box():
    boxes = torch.tensor([[0, 0, 32, 48], [8, 9, 24, 41]])
    assert inside(boxes, torch.Size((2, 3)), 16).tolist() == [[[[1, 1, 1], [1, 1, 1]]], [[[0, 1, 1], [0, 0, 0]]]]
