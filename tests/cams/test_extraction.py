"""What is taken out of a batch's maps for each image."""

from dataclasses import replace

import pytest
import torch

from cam_pipeline.cams import extraction
from cam_pipeline.cams.classes import shown_classes
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.cams.multi_scale import Maps
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.sfc import Calibration

SIZES = [(40, 60), (41, 61)]


def extracted(monkeypatch, class_ids, **cam):
    """Stored maps of two images whose maps hold their own place: 100 * image + 10 * kind + channel."""
    classifier = build_classifier("test_resnet", 3, stride=16).eval()
    extractor = CamExtractor(classifier, Config.model_validate({"cam": cam}))
    image = torch.arange(2.0).view(2, 1, 1, 1) * 100
    kinds = [(image + 10 * kind + torch.arange(4.0).view(1, 4, 1, 1)).expand(2, 4, 2, 3) for kind in (1, 2)]
    probabilities = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.1, 0.8]])
    found = Maps(kinds[0][:, 1:], probabilities, shown_classes(class_ids, probabilities, 0.5))
    if extractor.reading.calibration is not None:
        found = replace(found, background=kinds[0][:, 0], prototype_maps=kinds[1])
    monkeypatch.setattr(extraction, "read_maps", lambda *arguments: found)
    return extractor, extractor.extract(torch.zeros(2, 3, 32, 48), ["a", "b"], class_ids, SIZES)


@pytest.mark.parametrize("calibration", ["none", "sfc"])
def test_channels_are_those_of_the_classes_shown_or_predicted(monkeypatch, calibration):
    _, ((one, _), (other, probabilities)) = extracted(monkeypatch, [(2,), None], calibration=calibration)
    assert (one.name, one.class_ids, one.size) == ("a", (2,), (40, 60))
    assert one.cam[:, 0, 0].tolist() == [12]
    assert (other.name, other.class_ids, other.size) == ("b", (1, 3), (41, 61))
    assert other.cam[:, 0, 0].tolist() == [111, 113] and probabilities.tolist() == pytest.approx([0.9, 0.1, 0.8])
    if calibration == "none":
        assert one.background is None and other.prototype is None
        return
    assert one.background[0, 0] == 10 and one.prototype[:, 0, 0].tolist() == [20, 22]
    assert other.background[0, 0] == 110 and other.prototype[:, 0, 0].tolist() == [120, 121, 123]


def test_an_image_of_nothing_keeps_its_backgrounds(monkeypatch):
    _, ((one, _), _) = extracted(monkeypatch, [(), (1,)], calibration="sfc")
    assert len(one.cam) == 0 and one.background[0, 0] == 10 and one.prototype[:, 0, 0].tolist() == [20]


def test_settings_of_the_calibration_reach_it(monkeypatch):
    chosen = {"background_over": "all", "seed_background": 0.7, "correlation_steps": 5}
    extractor, _ = extracted(monkeypatch, [(1,), (1,)], calibration="sfc", **chosen)
    assert extractor.reading.calibration == Calibration("all", 0.7, 5)


def test_views_and_the_threshold_of_presence_are_those_of_the_settings(monkeypatch):
    extractor, _ = extracted(monkeypatch, [(1,), (1,)], scales=(0.5, 2.0), flip=False, presence_threshold=0.3)
    assert extractor.reading == CamReading(scales=(0.5, 2.0), flip=False, presence_threshold=0.3)


def test_every_image_gets_its_own_features(monkeypatch):
    classifier = build_classifier("test_resnet", 3, stride=16).eval()
    extractor = CamExtractor(classifier, Config.model_validate({"cam": {"keep_features": 5, "walk_levels": 2}}))
    assert (extractor.reading.keep_features, extractor.reading.levels) == (5, 2)
    features = torch.rand(2, 5, 4, 6)
    found = Maps(torch.rand(2, 3, 2, 3), torch.rand(2, 3), [(1,), ()], features=features)
    monkeypatch.setattr(extraction, "read_maps", lambda *arguments: found)
    stored = [one for one, _ in extractor.extract(torch.zeros(2, 3, 32, 48), ["a", "b"], [(1,), ()], SIZES)]
    assert all(one.features.equal(own) for one, own in zip(stored, features, strict=True))


def test_more_stages_than_there_are_are_refused_before_features_are_kept():
    classifier = build_classifier("test_resnet", 3, stride=16).eval()
    config = Config.model_validate({"cam": {"keep_features": 5, "walk_levels": 4}})
    extraction.cam_reading(config.cam, classifier)
    config = config.model_copy(update={"cam": config.cam.model_copy(update={"walk_levels": 9})})
    with pytest.raises(ConfigError, match=r"cam\.walk_levels = 9: .* 9 stages are to be compared, but the network has"):
        extraction.cam_reading(config.cam, classifier)
