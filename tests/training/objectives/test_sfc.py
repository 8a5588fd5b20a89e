import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_pipeline.config import Config
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.levels import LevelTap
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.ops.sfc import distribution_weights, msdw_losses, peak_normalized
from cam_pipeline.training.objectives.classification import classification_loss
from cam_pipeline.training.objectives.sfc import SfcObjective, inside, sfc_objective

WEIGHTS = torch.tensor([0.5, 1.5, 1.0])
SHOWN = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
"""Labels of four training images."""


def cnn(calibrated=True, seed=0, name="resnet10t"):
    torch.manual_seed(seed)
    arguments = {"channels": [8, 16, 24, 32], "stem_width": 8}
    classifier = build_classifier(name, 3, arguments=arguments, stride=16, freeze_batch_norm=True)
    nn.init.normal_(classifier.head.weight)
    if calibrated:
        classifier.add_calibration()
    return classifier.eval()


def sfc(classifier, weights=None, **values):
    settings = Config.model_validate({"sfc": values}).sfc
    return SfcObjective(classifier, settings, torch.ones(3) if weights is None else weights)


@pytest.fixture
def loss_of(terms_of):
    """Makes the loss with SFC; further values are its settings."""

    def make(classifier, images, progress=1.0, weights=None, boxes=None, **values):
        return terms_of(classifier, images, sfc(classifier, weights, **values), progress=progress, boxes=boxes)["loss"]

    return make


def maps_of(classifier, images, labels, boxes=None):
    """Classifier maps and levels by the functions that have tests of their own."""
    with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        features, logits = classifier(images)
    levels = tap.take(features.shape[-2:])
    raw = classifier_cam(features, classifier.head.weight)
    whole = torch.tensor([[0, 0, *images.shape[-2:]]] * len(images))
    valid = inside(whole if boxes is None else boxes, raw.shape[-2:], classifier.stride)
    maps = classifier.calibration.classifier_maps(
        raw, classifier.normalize(images), levels[-1], labels, Calibration(), valid
    )
    return maps, levels, logits, valid


@pytest.mark.parametrize("boxes", [None, torch.tensor([[0, 16, 64, 64], [0, 0, 32, 64]])])
def test_sfc_is_classification_at_two_scales_and_both_distances(square, labels, terms_of, loss_of, boxes):
    classifier, images = cnn(), square(64)
    small = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    maps, levels, logits, valid = maps_of(classifier, images, labels, boxes)
    prototypes = peak_normalized(classifier.calibration.prototype_maps(maps, levels, labels, Calibration(), valid))
    half, _, half_logits, _ = maps_of(classifier, small, labels, None if boxes is None else boxes / 2)
    down = F.interpolate(maps, (2, 2), mode="bilinear", align_corners=False)
    prototype, scale = msdw_losses(maps, prototypes, down, half, WEIGHTS)
    own, other = (classification_loss(values, labels).mean() for values in (logits, half_logits))
    assert prototype > 0.01 and scale > 0.001
    terms = terms_of(classifier, images, sfc(classifier, WEIGHTS, ramp=0.8), progress=0.6, boxes=boxes)
    expected = {
        "loss": (own + other) / 2 + 0.75 * (prototype + scale),
        "classification": own / 2,
        "sfc.classification": other / 2,
        "sfc.prototype": 0.75 * prototype,
        "sfc.scale": 0.75 * scale,
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value.detach())
    without_scale = terms_of(classifier, images, sfc(classifier, WEIGHTS, scale_weight=0.0), boxes=boxes)
    torch.testing.assert_close(without_scale["loss"], own + prototype)
    assert list(without_scale) == ["loss", "classification", "sfc.prototype"]
    bank_alone = loss_of(classifier, images, boxes=boxes, scale_weight=0.0, prototype_weight=0.0)
    torch.testing.assert_close(bank_alone, own)


def test_sfc_weights_rise_over_the_ramp(square, loss_of):
    classifier, images = cnn(), square(64)
    none = loss_of(classifier, images, progress=0.0, ramp=0.5)
    whole = loss_of(classifier, images)
    torch.testing.assert_close(loss_of(classifier, images, progress=0.25, ramp=0.5), (none + whole) / 2)
    torch.testing.assert_close(loss_of(classifier, images, progress=0.5, ramp=0.5), whole)


def test_sfc_gradients_go_where_the_paper_sends_them(square, loss_of):
    """To the backbone by the classifier maps, to side layers by the prototype maps alone."""
    classifier, images = cnn(), square(64)
    loss_of(classifier, images, prototype_weight=0.0).backward()
    head = classifier.calibration
    assert all(side.weight.grad is None for side in head.sides)
    assert head.comparison.weight.grad.any() and classifier.backbone.layer4[0].downsample[1].weight.grad.any()
    classifier.zero_grad()
    loss_of(classifier, images, scale_weight=0.0).backward()
    assert all(side.weight.grad.any() for side in head.sides)


def test_sfc_of_an_empty_view_is_classification_alone(terms_of):
    """This is what an empty slot of the bank gives in the released code's way."""
    classifier, images = cnn(), torch.zeros(2, 3, 64, 64)
    nothing = torch.zeros(2, 3)
    method, nowhere = sfc(classifier, scale_weight=0.0), torch.zeros(2, 4, dtype=torch.int64)
    got = terms_of(classifier, images, method, boxes=nowhere, labels=nothing)["loss"]
    torch.testing.assert_close(got, classification_loss(classifier(images).logits, nothing).mean())


def test_the_bank_alone_asks_nothing_of_the_network(square, labels, loss_of):
    classifier, images = cnn(calibrated=False), square(64)
    classifier.backbone.feature_info = None
    got = loss_of(classifier, images, prototype_weight=0.0, scale_weight=0.0)
    torch.testing.assert_close(got, classification_loss(classifier(images).logits, labels).mean())


def test_crops_that_have_no_half_in_whole_cells(square, loss_of):
    classifier = cnn()
    assert loss_of(classifier, square(48)).isfinite()  # 3 x 3 cells, so 2 x 2
    assert loss_of(classifier, square(16)).isfinite()


def test_a_split_batch_has_the_mean_loss_of_its_parts(square, labels, terms_of):
    """Several processes need this: weights of classes do not depend on the batch."""
    classifier, images = cnn(), square(64)
    method = sfc(classifier, WEIGHTS)
    parts = [terms_of(classifier, images[i : i + 1], method, labels=labels[i : i + 1])["loss"] for i in range(2)]
    torch.testing.assert_close(terms_of(classifier, images, method)["loss"], torch.stack(parts).mean())


def test_cells_whose_centre_lies_in_the_box():
    boxes = torch.tensor([[0, 0, 32, 48], [8, 9, 24, 41]])
    assert inside(boxes, torch.Size((2, 3)), 16).tolist() == [[[[1, 1, 1], [1, 1, 1]]], [[[0, 1, 1], [0, 0, 0]]]]


def made(**values):
    """The classifier and SFC's objective as a config makes them, for training images with the labels SHOWN."""
    config = Config.model_validate({"sfc": values, "train_cls": {"batch_size": 2}, "run": {"seed": 5}})
    classifier = cnn(calibrated=False)
    return classifier, sfc_objective(classifier, config, SHOWN)


def test_bank_and_weights_follow_from_the_labels():
    classifier, method = made(draws=3, blank_slots=True)
    bank = method.more_views
    assert (bank.class_ids, bank.num_classes) == ([(1,), (1, 2), (1,), ()], 2)
    assert (bank.draws, bank.seed, bank.blank) == (3, 5, True)
    # Two steps of 3 draws; a slot shows (1 + 2 + 1) / 3 and 2 labels on average, shared by two classes: 5 more of each.
    torch.testing.assert_close(method.class_weights, distribution_weights(torch.tensor([3.0, 1.0]), 5.0))
    assert classifier.calibration.sides is not None and classifier.calibration.comparison is not None


def test_parts_that_are_off_are_not_there():
    classifier, method = made(draws=0, distribution_weights=False, prototype_weight=0.0)
    assert method.more_views is None and method.class_weights.tolist() == [1, 1]
    assert classifier.calibration.sides is None and classifier.calibration.comparison is not None
    classifier, method = made(prototype_weight=0.0, scale_weight=0.0)
    assert method.more_views is not None and classifier.calibration is None and not method.taps


def test_the_number_of_appearances_can_be_given():
    _, method = made(extra=396.0)
    torch.testing.assert_close(method.class_weights, distribution_weights(torch.tensor([3.0, 1.0]), 396.0))
