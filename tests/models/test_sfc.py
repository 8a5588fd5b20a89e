"""Side features and calibrated maps, on grids of 2 x 3 and 4 x 6 cells."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_pipeline.cams.multi_scale import read_maps
from cam_pipeline.cams.reading import AttentionPropagation, CamReading
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.models.levels import LevelTap, NoLevels, feature_levels, sampled_pixels
from cam_pipeline.models.sfc import Calibration, CalibrationHead
from cam_pipeline.ops.cam import classifier_cam, normalize_cam, place_view
from cam_pipeline.ops.sfc import maps_with_background, pixel_correlation, prototype_cam, unit_vectors

CLASSES = 3
CNN = ("resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8}, {"stride": 16})
VIT = ("deit_tiny_distilled_patch16_224", {"depth": 6}, {"pooling": "class_token"})
HYBRID = (
    "vit_tiny_patch16_224",
    {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 48},
    {"stride": 16, "pooling": "class_token", "trunk": Trunk(CNN[0], CNN[1], "none")},
)
NETWORKS = {
    "cnn": CNN,
    "vit": VIT,
    "hybrid": HYBRID,
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, {}),
}


def build(kind, calibrated=True):
    torch.manual_seed(0)
    name, arguments, more = NETWORKS[kind]
    classifier = build_classifier(name, CLASSES, arguments=arguments, **more).eval()
    nn.init.normal_(classifier.head.weight)
    if calibrated:
        classifier.add_calibration()
    return classifier


def images(height=64, width=96, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def taken(classifier, batch):
    with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        features, _ = classifier(batch)
    return features, tap.take(features.shape[-2:])


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("cnn", [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 4, 6)]),
        ("vit", [(192, 4, 6)] * 4),
        ("hybrid", [(16, 8, 12), (24, 4, 6), (32, 4, 6), (24, 4, 6)]),
        ("swin", [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]),
    ],
)
def test_levels_of_every_kind_of_network(kind, shapes):
    classifier = build(kind)
    before = [module._forward_hooks.copy() for module in classifier.modules()]
    _, levels = taken(classifier, images())
    assert [tuple(level.shape) for level in levels] == [(2, *shape) for shape in shapes]
    assert [level.requires_grad for level in levels] == [False] * 3 + [True]
    assert before == [module._forward_hooks for module in classifier.modules()]


def test_a_vit_gives_blocks_far_apart_and_its_patches_in_order():
    classifier = build("vit")
    names = {module: name for name, module in classifier.backbone.named_modules()}
    found = [names[level.module] for level in feature_levels(classifier.backbone)]
    assert found == [f"blocks.{number}" for number in (0, 2, 3, 5)]
    features, levels = taken(classifier, images())
    tokens = classifier.backbone.norm(levels[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.transpose(1, 2).view_as(features), features)


def test_levels_are_taken_once():
    classifier = build("cnn")
    with LevelTap(classifier.backbone, 0) as tap:
        classifier(images())
        tap.take((4, 6))
        with pytest.raises(RuntimeError, match="has not run"):
            tap.take((4, 6))


def test_a_network_without_stages_is_refused():
    with pytest.raises(NoLevels, match="timm does not say"):
        feature_levels(nn.Sequential(nn.Conv2d(3, 4, 1)))
    classifier = build("cnn", calibrated=False)
    classifier.backbone.feature_info = None
    with pytest.raises(ConfigError, match=r"objectives\.sfc needs features of several depths, but timm does not say"):
        classifier.add_calibration()


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (3, 5), (8, 12), (16, 24)])
def test_pixels_that_resampling_does_not_look_at_are_left_out(size):
    maps = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    fewer = sampled_pixels(maps, size)
    expected, got = (F.interpolate(one, size, mode="bilinear", align_corners=False) for one in (maps, fewer))
    torch.testing.assert_close(got, expected)
    assert fewer.shape[-2:] == ((2 * size[0], 2 * size[1]) if size in ((2, 3), (4, 6)) else (16, 24))


def test_learned_side_features_are_unit_vectors_of_128_128_256_256():
    classifier = build("cnn")
    head = classifier.calibration
    features, levels = taken(classifier, images())
    side = head.side_features(levels, features.shape[-2:])
    assert side.shape == (2, 768, 4, 6)
    lengths = [part.norm(dim=1) for part in side.split([128, 128, 256, 256], dim=1)]
    torch.testing.assert_close(lengths[3], torch.ones(2, 4, 6), atol=1e-3, rtol=0)  # not resampled
    assert all((length <= 1 + 1e-5).all() for length in lengths)
    first = F.interpolate(unit_vectors(head.sides[0](levels[0])), (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(side[:, :128], first)


def test_the_learned_comparison_is_of_the_deepest_level_and_the_image():
    classifier = build("cnn")
    head, (_, levels) = classifier.calibration, taken(classifier, images())
    small = F.interpolate(images(), (4, 6), mode="bilinear", align_corners=False)
    weight = head.comparison.weight[:, :, 0, 0]
    expected = torch.einsum("od,bdhw->bohw", weight, torch.cat([levels[-1], small], dim=1))
    torch.testing.assert_close(head.compared_features(images(), levels[-1]), expected)


@pytest.mark.parametrize(("sides", "comparison"), [(True, False), (False, True)])
def test_what_is_not_learned_is_taken_as_it_is(sides, comparison):
    classifier = build("cnn", calibrated=False)
    classifier.add_calibration(sides, comparison)
    head, (_, levels) = classifier.calibration, taken(classifier, images())
    assert head.side_features(levels, (4, 6)).shape[1] == (768 if sides else 8 + 16 + 24 + 32)
    assert (head.compared_features(images(), levels[-1]) is levels[-1]) != comparison


def test_maps_with_channels_last_are_told_by_the_network_not_by_their_shape():
    """At 16 rows and a width of 16 channels the two cannot be told apart."""
    torch.manual_seed(0)
    arguments = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2), "window_size": 4}
    classifier = build_classifier("swin_tiny_patch4_window7_224", CLASSES, arguments=arguments).eval()
    batch, seen = images(64, 96), []
    feature_levels(classifier.backbone)[0].module.register_forward_hook(lambda module, inputs, out: seen.append(out))
    _, levels = taken(classifier, batch)
    assert seen[0].shape == (2, 16, 24, 16)
    torch.testing.assert_close(levels[0], seen[0].permute(0, 3, 1, 2))


def test_gradients_reach_side_layers_only_by_prototypes_and_the_backbone_only_by_classifier_maps():
    classifier, settings, present = build("cnn"), Calibration(), torch.ones(2, CLASSES)
    head = classifier.calibration
    features, levels = taken(classifier, images())
    raw = classifier_cam(features, classifier.head.weight)
    maps = head.classifier_maps(raw, images(), levels[-1], present, settings)
    prototypes = head.prototype_maps(maps, levels, present, settings)
    sides = [side.weight for side in head.sides]
    others = [*classifier.backbone.parameters(), classifier.head.weight, head.comparison.weight]
    of_prototypes = torch.autograd.grad(prototypes.sum(), [*sides, *others], retain_graph=True, allow_unused=True)
    assert all(slope is not None and slope.any() for slope in of_prototypes[:4])
    assert all(slope is None for slope in of_prototypes[4:])
    of_maps = torch.autograd.grad(maps.square().sum(), [*sides, *others], allow_unused=True)
    assert all(slope is None for slope in of_maps[:4])
    assert of_maps[-1].any() and of_maps[-2].any() and of_maps[4].any()


def read_calibrated(classifier, batch, class_ids, scales=(1.0,), flip=False, **more):
    """Classifier maps and prototype maps (B, 1 + C, h, w), and probabilities."""
    reading = CamReading(scales=scales, flip=flip, calibration=Calibration(**more))
    found = read_maps(classifier, batch, reading, class_ids)
    return torch.cat([found.background[:, None], found.maps], dim=1), found.prototype_maps, found.probabilities


@pytest.mark.parametrize("kind", ["cnn", "vit", "hybrid"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_one_view_is_what_the_functions_say(kind, calibrated):
    classifier = build(kind, calibrated)
    classifier.offset = 0.0
    class_ids = [(1, 3), ()]
    with torch.no_grad():
        own, prototypes, probabilities = read_calibrated(classifier, images(), class_ids)
        features, levels = taken(classifier, images())
        present = torch.tensor([[1, 0, 1], [0, 0, 0]])
        raw = classifier_cam(features, classifier.head.weight)
        head = classifier.calibration or CalibrationHead()
        compared = head.compared_features(classifier.normalize(images()), levels[-1])
        maps = pixel_correlation(maps_with_background(raw, present), compared)
        torch.testing.assert_close(own, maps)
        mask = torch.cat([torch.ones(2, 1), present], 1)[:, :, None, None].expand_as(maps)
        side = head.side_features(levels, (4, 6))
        torch.testing.assert_close(prototypes, prototype_cam(maps, side, mask))
        torch.testing.assert_close(probabilities, classifier(images()).logits.sigmoid())
    assert (own[0, 2] == 0).all() and (prototypes[0, 2] == 0).all(), "class 2 is absent"
    assert (own[1, 1:] == 0).all() and (prototypes[1, 1:] == 0).all()
    assert torch.allclose(own[1, 0], torch.ones(4, 6), atol=1e-3), "an image of nothing is background"


def test_views_are_drawn_where_their_cells_lie_and_then_added():
    classifier = build("cnn")
    classifier.offset = 0.5
    one, both = (read_calibrated(classifier, images(), [(1, 3), (2,)], flip=flip) for flip in (False, True))
    classifier.offset = 0.0
    views = (images(), images().flip(-1))
    plain = [read_calibrated(classifier, view, [(1, 3), (2,)]) for view in views]
    for number in range(2):
        first, second = (view[number] for view in plain)
        torch.testing.assert_close(one[number], place_view(first, (4, 6), 0.5))
        expected = (place_view(first, (4, 6), 0.5) + place_view(second, (4, 6), 0.5, flipped=True)) / 2
        torch.testing.assert_close(both[number], expected)


@pytest.mark.parametrize("kind", ["cnn", "hybrid"])
def test_a_mirrored_image_has_mirrored_maps(kind):
    classifier = build(kind)
    arguments = ([(1, 3), (2,)], (0.5, 1.0, 1.5), True)
    maps = read_calibrated(classifier, images(), *arguments)
    mirrored = read_calibrated(classifier, images().flip(-1), *arguments)
    for one, other in zip(maps[:2], mirrored[:2], strict=True):
        torch.testing.assert_close(other, one.flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored[2], maps[2], atol=1e-4, rtol=0)


def test_maps_of_class_token_gradients_can_be_calibrated():
    classifier = build("vit")
    classifier.head.weight.data /= 1e6  # gradients this small are no noise
    class_ids = [(1, 3), (2,)]
    plain = CamReading(source="class_token_gradient", map_function="cam_grad", propagation=AttentionPropagation())
    raw = read_maps(classifier, images(), plain, class_ids).maps
    found = read_maps(classifier, images(), replace(plain, calibration=Calibration(correlation_steps=0)), class_ids)
    torch.testing.assert_close(found.maps, normalize_cam(raw, eps=0.0), atol=1e-4, rtol=0)
    assert found.prototype_maps[0, 1].any() and found.prototype_maps[1, 2].any()


def test_unknown_classes_are_predicted_once_for_all_views():
    classifier = build("cnn")
    classifier.head.weight.data.abs_()  # no map is empty
    own, prototypes, probabilities = read_calibrated(classifier, images(), [(1,), None], (1.0, 0.5), True)
    shown = probabilities[1] > 0.5
    shown[probabilities[1].argmax()] = True
    assert torch.equal(own[1, 1:].flatten(1).any(dim=1), shown)
    assert torch.equal(own[0, 1:].flatten(1).any(dim=1), torch.tensor([True, False, False]))
    assert prototypes.shape == own.shape == (2, 1 + CLASSES, 4, 6)


def test_background_over_all_classes_is_lower():
    classifier = build("cnn")
    ours = read_calibrated(classifier, images(), [(1,), (1,)], correlation_steps=0)[0]
    theirs = read_calibrated(classifier, images(), [(1,), (1,)], background_over="all", correlation_steps=0)[0]
    assert (theirs[:, 0] <= ours[:, 0] + 1e-6).all() and not torch.equal(theirs[:, 0], ours[:, 0])
    torch.testing.assert_close(theirs[:, 1:], ours[:, 1:])
