"""Walks over features, and background told by the border: once, on the grid of the largest of all views."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from cam_pipeline.cams.likeness import Border, FeatureWalk, cell_features
from cam_pipeline.cams.multi_scale import check_reading, read_maps
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.cams.views import scaled_views
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.levels import LevelTap
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.border import border_likeness, without_background
from cam_pipeline.ops.cam import classifier_cam, normalize_cam, place_view
from cam_pipeline.ops.clicks import compact_features

CLASSES = 4


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))  # 2 x 3 cells


def network_of(kind):
    torch.manual_seed(0)
    if kind == "vit":
        vit = {"arguments": {"depth": 4}, "pooling": "class_token"}
        network = build_classifier("deit_tiny_distilled_patch16_224", CLASSES, **vit)
        for block in network.backbone.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=0.1)
    else:
        network = build_classifier("test_resnet", CLASSES, stride=16)
    nn.init.normal_(network.head.weight)
    return network.eval()


def features_at(network, images, levels):
    """What is compared of these images, and the placed maps of the classifier's weights."""
    with torch.no_grad(), LevelTap(network.backbone, network.prefix_tokens) as tap:
        features = network(images).features
        taken = tap.take(features.shape[-2:])[-levels:]
        raw = classifier_cam(features, network.head.weight)
    grid = raw.shape[-2:]
    return cell_features(taken, grid, network.offset), place_view(raw, grid, network.offset)


def claimed_by(maps, shown):
    of_shown = [normalize_cam(own, eps=0.0)[[one - 1 for one in ids]] for own, ids in zip(maps, shown, strict=True)]
    return torch.stack(
        [own.amax(dim=0, keepdim=True) if len(own) else own.new_zeros(1, *own.shape[1:]) for own in of_shown]
    )


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize(("radius", "levels"), [(0, 1), (1, 1), (0, 2)])
def test_a_walk_compares_the_levels_of_the_view(images, kind, radius, levels):
    network = network_of(kind)
    reading = CamReading(propagation=FeatureWalk(radius, steps=2, power=3.0), levels=levels)
    check_reading(reading, network)
    features, raw = features_at(network, images, levels)
    found = read_maps(network, images, reading).maps
    assert not network.backbone._forward_hooks
    torch.testing.assert_close(found, feature_walk(raw, features, radius, 2, 3.0), rtol=1e-4, atol=1e-5)


def test_what_is_compared_is_the_mean_cosine_of_the_levels(images):
    """Of a ViT, whose levels share a grid without offset."""
    network = network_of("vit")
    with torch.no_grad(), LevelTap(network.backbone, network.prefix_tokens) as tap:
        network(images)
    levels = tap.take((2, 3))[-2:]
    compared = functional.normalize(cell_features(levels, (2, 3), network.offset).flatten(2), dim=1)
    units = [functional.normalize(level.flatten(2), dim=1) for level in levels]
    mean = torch.stack([unit.mT @ unit for unit in units]).mean(dim=0)
    torch.testing.assert_close(compared.mT @ compared, mean, rtol=1e-3, atol=1e-4)


def test_more_stages_than_there_are_are_refused():
    network = network_of("cnn")
    for reading in (CamReading(propagation=FeatureWalk(), levels=9), CamReading(border=Border(), levels=9)):
        with pytest.raises(ValueError, match="9 stages are to be compared, but the network has"):
            check_reading(reading, network)
    check_reading(CamReading(levels=9), network)  # none is compared


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("propagation", [None, FeatureWalk(steps=2)])
def test_a_background_like_the_border_is_taken_away_last(kind, propagation):
    network = network_of(kind)
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))  # 3 x 4 cells, two inside the border
    reading = CamReading(propagation=propagation, border=Border(0.1, steps=3, power=2.0), levels=2)
    check_reading(reading, network)
    features, _ = features_at(network, images, 2)
    before = read_maps(network, images, CamReading(propagation=propagation, levels=2)).maps
    read = read_maps(network, images, reading, [(1, 3), None, ()])
    found, own = read.maps, read.probabilities[1]
    predicted = {1 + int(number) for number in (own > 0.5).nonzero()} | {1 + int(own.argmax())}
    claimed = claimed_by(before, [(1, 3), tuple(predicted), ()])
    expected = without_background(before, border_likeness(features, 0.1, 3, 2.0, claimed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found[0].any() and not torch.allclose(found[0], before[0])


def test_maps_as_small_as_gradients_claim_the_border_too():
    network = network_of("cnn")
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    reading = CamReading(border=Border(0.1))
    usual = read_maps(network, images, reading, [(1, 3), (2,)]).maps
    network.head.weight.data /= 2**24
    small = read_maps(network, images, reading, [(1, 3), (2,)]).maps
    torch.testing.assert_close(small * 2**24, usual)


def test_an_image_of_one_cell_is_its_class():
    """All of it is border, and all of that is claimed."""
    network = network_of("cnn")
    network.head.weight.data.abs_()
    reading = CamReading(propagation=FeatureWalk(), border=Border(0.1), scales=(0.5, 1.0), flip=True)
    maps = read_maps(network, torch.rand(1, 3, 16, 16), reading, [(2,)]).maps
    assert maps.shape == (1, CLASSES, 1, 1) and maps[0, 1].any()


@pytest.mark.parametrize("flip", [False, True])
def test_maps_of_all_views_walk_once_on_the_finest_grid(images, flip):
    """The features of the largest scale alone decide, wherever it stands among the scales."""
    network, scales = network_of("cnn"), (0.5, 2.0, 1.0)
    found = read_maps(network, images, CamReading(propagation=FeatureWalk(0, 2, 3.0), scales=scales, flip=flip))
    raw, probabilities = torch.zeros(3, CLASSES, 4, 6), []
    for scale in scales:
        view = functional.interpolate(images, (round(2 * scale) * 16, round(3 * scale) * 16), mode="bilinear")
        for flipped in (False, True) if flip else (False,):
            with torch.no_grad():
                output = network(view.flip(-1) if flipped else view)
            own = classifier_cam(output.features, network.head.weight)
            raw += place_view(own, (4, 6), network.offset, flipped) / (1 + flip)
            probabilities.append(output.logits.sigmoid())
    features, _ = features_at(network, functional.interpolate(images, (64, 96), mode="bilinear"), 1)
    torch.testing.assert_close(found.maps, feature_walk(raw, features, None, 2, 3.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities, torch.stack(probabilities).mean(dim=0))


def test_calibrated_maps_walk_and_lose_the_border_but_not_their_backgrounds(images):
    network, class_ids = network_of("cnn"), [(1,), (2, 4), ()]
    calibration, walk, border = Calibration(correlation_steps=0), FeatureWalk(steps=2, power=3.0), Border(0.1, 1, 2.0)
    plain = read_maps(network, images, CamReading(calibration=calibration), class_ids)
    reading = CamReading(propagation=walk, calibration=calibration, border=border)
    found = read_maps(network, images, reading, class_ids)
    features, _ = features_at(network, images, 1)
    assert torch.equal(found.background, plain.background)
    assert torch.equal(found.prototype_maps[:, 0], plain.prototype_maps[:, 0])
    of_prototypes = (plain.prototype_maps[:, 1:], found.prototype_maps[:, 1:])
    for before, after in ((plain.maps, found.maps), of_prototypes):
        walked = feature_walk(before, features, None, 2, 3.0)
        likeness = border_likeness(features, 0.1, 1, 2.0, claimed_by(walked, class_ids))
        torch.testing.assert_close(after, without_background(walked, likeness), rtol=1e-4, atol=1e-5)


def test_bfloat16_and_inference_mode_are_close(images):
    network = network_of("cnn")
    walk = FeatureWalk(steps=2, power=3.0)
    reading = CamReading(propagation=walk, border=Border(0.1), scales=(1.0, 2.0), flip=True)
    usual = read_maps(network, images, reading, [(1,), (2,), (3,)]).maps
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = read_maps(network, images, reading, [(1,), (2,), (3,)]).maps
    assert found.dtype == torch.float32
    assert (found - usual).abs().max() < 0.1 * usual.max()


@pytest.mark.parametrize("extras", [{}, {"border": Border()}, {"calibration": Calibration()}])
def test_kept_features_tell_similarity_and_change_no_map(images, extras):
    network = network_of("cnn")
    reading = CamReading(scales=(1.0, 2.0), flip=True, levels=2, **extras)
    class_ids = [(1,), (2, 3), (4,)]
    plain = read_maps(network, images, reading, class_ids)
    found = read_maps(network, images, replace(reading, keep_features=6), class_ids)
    assert plain.features is None and found.features.shape == (3, 6, 4, 6)
    torch.testing.assert_close(found.maps, plain.maps, rtol=0, atol=0)
    assert found.maps.shape[2:] == ((4, 6) if extras.get("border") else (2, 3))
    finest = scaled_views(images, 16, (2.0,), False)[0].images
    expected = compact_features(features_at(network, finest, 2)[0], 6)
    torch.testing.assert_close(found.features.abs(), expected.abs(), rtol=1e-3, atol=1e-4)  # directions have no sign
