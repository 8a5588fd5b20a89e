import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_pipeline.cams.classes import predicted_classes
from cam_pipeline.cams.multi_scale import read_maps
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.ops.cam import classifier_cam, place_view


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def classifier(request):
    torch.manual_seed(0)
    classifier = build_classifier(request.param, 3, stride=16 if request.param == "test_resnet" else 0).eval()
    nn.init.normal_(classifier.head.weight)
    return classifier


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(1))  # 3 x 5 cells


def read(classifier, images, scales, flip):
    """Maps and probabilities."""
    found = read_maps(classifier, images, CamReading(scales=scales, flip=flip))
    return found.maps, found.probabilities


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))


def test_one_view_is_the_positive_part_of_the_classifier_cam_placed(classifier, images):
    maps, probabilities = read(classifier, images, [1.0], flip=False)
    with torch.no_grad():
        features, logits = classifier(images)
        raw = classifier_cam(features, classifier.head.weight)
    assert maps.shape == (2, 3, 3, 5) and probabilities.shape == (2, 3)
    assert (raw < 0).any() and (maps > 0).any()
    close(maps, place_view(raw, (3, 5), classifier.offset))
    close(probabilities, logits.sigmoid())


def test_flipping_averages_the_positive_parts_of_both_views(classifier, images):
    maps, probabilities = read(classifier, images, [1.0], flip=True)
    with torch.no_grad():
        plain, mirrored = classifier(images), classifier(images.flip(-1))
        views = [classifier_cam(view.features, classifier.head.weight) for view in (plain, mirrored)]
    placed = [place_view(views[0], (3, 5), classifier.offset), place_view(views[1], (3, 5), classifier.offset, True)]
    close(maps, (placed[0] + placed[1]) / 2)
    close(probabilities, (plain.logits.sigmoid() + mirrored.logits.sigmoid()) / 2)


def test_scales_are_summed_on_the_grid_of_scale_one(classifier, images):
    maps, probabilities = read(classifier, images, [0.5, 1.0, 1.5], flip=False)
    expected = torch.zeros(2, 3, 3, 5)
    each = []
    for rows, columns in [(2, 2), (3, 5), (4, 8)]:  # 1.5 and 2.5, then 4.5 and 7.5 cells, rounded to even
        scaled = F.interpolate(images, (rows * 16, columns * 16), mode="bilinear", align_corners=False)
        with torch.no_grad():
            features, logits = classifier(scaled)
        raw = classifier_cam(features, classifier.head.weight)
        expected += place_view(raw, (3, 5), classifier.offset)
        each.append(logits.sigmoid())
    close(maps, expected)
    close(probabilities, torch.stack(each).mean(dim=0))


def test_a_mirrored_image_gives_mirrored_maps(classifier, images):
    scales = [0.6, 1.0, 1.4]
    maps, probabilities = read(classifier, images, scales, flip=True)
    mirrored, same = read(classifier, images.flip(-1), scales, flip=True)
    close(mirrored.flip(-1), maps)
    close(same, probabilities)
    assert not torch.allclose(mirrored, maps, rtol=1e-2)


def test_maps_do_not_depend_on_the_rest_of_the_batch(classifier, images):
    together, probabilities = read(classifier, images, [0.75, 1.0], flip=True)
    for index in range(2):
        alone, own = read(classifier, images[index : index + 1], [0.75, 1.0], flip=True)
        close(alone[0], together[index])
        close(own[0], probabilities[index])
    turned, _ = read(classifier, images.flip(0), [0.75, 1.0], flip=True)
    close(turned.flip(0), together)


def test_the_smallest_scale_keeps_one_cell(classifier):
    maps, _ = read(classifier, torch.rand(1, 3, 16, 32), [0.1], flip=True)
    assert maps.shape == (1, 3, 1, 2)


def test_images_and_graph_stay_as_they_are(classifier, images):
    before = images.clone()
    maps, probabilities = read(classifier, images, [0.5, 1.0], flip=True)
    assert torch.equal(images, before)
    assert not maps.requires_grad and not probabilities.requires_grad and classifier.head.weight.grad is None


def test_a_classifier_in_training_mode_gives_the_same_maps_and_learns_nothing_from_the_look(classifier, images):
    expected, expected_probabilities = read(classifier, images, [0.5, 1.0], flip=True)
    training = copy.deepcopy(classifier).train()
    modules = list(training.modules())
    modules[-1].eval()
    modes, before = [module.training for module in modules], copy.deepcopy(training.state_dict())
    maps, probabilities = read(training, images, [0.5, 1.0], flip=True)
    close(maps, expected)
    close(probabilities, expected_probabilities)
    assert [module.training for module in modules] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state_dict().items())


def test_classes_that_are_unknown_are_predicted_from_the_mean_over_views(classifier, images):
    reading = CamReading(scales=(0.5, 1.0), flip=True, presence_threshold=0.4)
    found = read_maps(classifier, images, reading, [(2,), None])
    assert found.class_ids == [(2,), predicted_classes(found.probabilities[1], 0.4)]
    assert read_maps(classifier, images, reading).class_ids[1] == found.class_ids[1]
    assert found.background is None and found.prototype_maps is None


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.1, 0.6], (1, 3)),
        ([0.5, 0.2, 0.51], (3,)),  # strictly above
        ([0.1, 0.3, 0.2], ()),
        ([0.6, 0.7, 0.8], (1, 2, 3)),
    ],
)
def test_predicted_classes(probabilities, expected):
    assert predicted_classes(torch.tensor(probabilities), 0.5) == expected


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.1, 0.3, 0.2], (2,)), ([0.0, 0.0, 0.0], (1,)), ([0.5, 0.2, 0.51], (3,)), ([0.6, 0.7, 0.8], (1, 2, 3))],
)
def test_predicted_classes_of_which_there_must_be_one(probabilities, expected):
    assert predicted_classes(torch.tensor(probabilities), 0.5, at_least_one=True) == expected
