"""The configs of the large data sets: their models can be built, and say what the literature says."""

from functools import cache

import pytest
import torch

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.cams.reading import AttentionPropagation
from cam_pipeline.config import ClassifierSettings, Config, SegmenterSettings, load_config
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.sfc import Calibration

CLASSES = {"voc12": 20, "voc12-vit": 20, "voc12-acr": 20, "voc12-sfc": 20, "coco14": 80, "coco14-vit": 80}


def without_weights(name: str) -> Config:
    return load_config(name, ["classifier.weights=none", "segmenter.weights=none"])


@cache
def classifier_of(settings: str) -> Classifier:
    """Built once for configs that agree: a ViT-B takes seconds."""
    return new_classifier(ClassifierSettings.model_validate_json(settings), 20)


@cache
def segmenter_of(settings: str) -> Segmenter:
    return new_segmenter(SegmenterSettings.model_validate_json(settings), 20)


@pytest.mark.parametrize("name", CLASSES)
def test_classifiers(name: str) -> None:
    settings = without_weights(name).classifier
    classifier = classifier_of(settings.model_dump_json())
    parameters = sum(one.numel() for one in classifier.backbone.parameters())
    assert classifier.stride == 16
    expected = {"": (2048, 24), "sfc": (2048, 24), "vit": (768, 86), "acr": (768, 98)}[name.partition("-")[2]]
    assert (classifier.width, round(parameters / 1e6)) == expected
    assert classifier.freeze_batch_norm == (settings.backbone == "resnet50")


@pytest.mark.parametrize("name", CLASSES)
def test_segmenters(name: str) -> None:
    segmenter = segmenter_of(without_weights(name).segmenter.model_dump_json())
    assert type(segmenter.network).__name__ == "DeepLabV2"
    assert round(sum(one.numel() for one in segmenter.pretrained_half().parameters()) / 1e6) == 43  # ResNet-101
    with torch.no_grad():
        assert segmenter.eval().pretrained_half()(torch.rand(1, 3, 33, 33))[-1].shape == (1, 2048, 5, 5)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_of_the_literature(name: str) -> None:
    config = load_config(name)
    assert config.classifier.weights == config.segmenter.weights == "pretrained"
    assert config.cam.flip and set(config.cam.scales) >= ({1.0} if "acr" in name else {0.5, 1.0, 1.5})
    assert config.cam.splits == (config.data.train,)
    images = {"voc12": 10_582, "coco14": 82_783}[name.partition("-")[0]]
    steps = images // config.train_seg.batch_size * config.train_seg.epochs
    assert steps == pytest.approx({"voc12": 20_000, "coco14": 100_000}[name.partition("-")[0]], rel=0.02)
    if "-" not in name:
        train = config.train_cls
        assert (train.optimizer, train.lr, train.epochs, train.batch_size, train.crop) == ("sgd", 0.1, 5, 16, 512)


def test_acr_is_that_of_the_paper() -> None:
    """Sun et al. 2023: ViT-B over a ResNet-50 at 384 pixels, alpha 125 at 576 patches, the last two blocks."""
    config = load_config("voc12-acr", ["classifier.weights=none"])
    classifier = classifier_of(config.classifier.model_dump_json())
    assert config.objectives.acr and classifier.pooling == "class_token"
    reading = cam_reading(config.cam, classifier)
    assert (reading.source, reading.map_function, reading.start_layer) == ("class_token_gradient", "grad", -2)
    assert reading.propagation == AttentionPropagation() and not reading.calibration and not reading.border
    assert (config.train_cls.crop // classifier.stride) ** 2 == 576
    assert config.acr.activation_weight * 576 == pytest.approx(125, abs=0.01)
    assert config.refine.normalize == "minmax"


def test_sfc_is_that_of_the_paper() -> None:
    """Zhao et al. 2024: side features of 128, 128, 256, 256, a comparison of 2048, three losses from the first step."""
    config = load_config("voc12-sfc", ["classifier.weights=none"])
    classifier = new_classifier(config.classifier, 20, sides=True, comparison=True)
    head = classifier.calibration
    assert head is not None and head.sides is not None and head.comparison is not None
    shapes = [tuple(layer.weight.shape[:2]) for layer in [*head.sides, head.comparison]]
    assert shapes == [(128, 256), (128, 512), (256, 1024), (256, 2048), (2048, 2051)]
    assert cam_reading(config.cam, classifier).calibration == Calibration("present", 0.3, 2)
    sfc, refine = config.sfc, config.refine
    assert (sfc.draws, sfc.prototype_weight, sfc.scale_weight, sfc.extra, sfc.ramp) == (4, 1.6, 0.8, 396, 0)
    assert (refine.background, refine.background_map, refine.prototype_share) == (0.2, 0.5, 0.5)
    assert config.train_cls.epochs * (10_582 // 16) == 3966


def test_voc_names_its_classes() -> None:
    from cam_pipeline.data.readers import VOC_CLASSES

    assert load_config("voc12").data.classes == load_config("voc12-vit").data.classes == VOC_CLASSES
