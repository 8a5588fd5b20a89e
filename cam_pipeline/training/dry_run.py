"""Builds both networks of a config without weights, to find before training what a stage would stop at."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.assembly.fits import check_crop
from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.config import Config
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.backbone import check_name
from cam_pipeline.models.classifier import Classifier, check_start
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.training.objectives import classifier_objectives
from cam_pipeline.training.objectives.sfc import half_side

ANY_CLASSES = 2
"""The number of classes does not decide whether a network is possible, and only the data tells it."""


def try_classifier(config: Config) -> None:
    """Raise ConfigError if the classifier cannot be built, trained or read as the config says."""
    settings = config.classifier
    check_start(settings.weights, bool(settings.trunk), settings.similar_attention)
    without_weights = settings.model_copy(update={"weights": "none", "trunk_weights": "none"})
    classifier = new_classifier(without_weights, ANY_CLASSES)
    classifier_objectives(classifier, config, labels=torch.zeros(0, ANY_CLASSES))
    check_views(classifier, config)
    cam_reading(config.cam, classifier)


def check_views(classifier: Classifier, config: Config, images: int | None = None) -> None:
    """Raise ConfigError if the classifier cannot be trained on its crops, and on what objectives make of them.

    `images`: how many there are, if that is known; a batch is no larger.
    """
    settings, name = config.train_cls, config.classifier.backbone
    batch = min(settings.batch_size, images or settings.batch_size)
    views = batch
    if config.objectives.sfc:
        views += config.sfc.draws
        if config.sfc.compares_maps and config.sfc.scale_weight:
            half = half_side(settings.crop, classifier.stride)
            check_crop(classifier, settings.crop, "train_cls.crop", name, views, half)
    if config.objectives.acr:
        views += batch
    check_crop(classifier, settings.crop, "train_cls.crop", name, views)


def try_segmenter(config: Config) -> None:
    """Raise ConfigError if the segmenter cannot be built, or not be trained on its crops."""
    segmenter = new_segmenter(config.segmenter.model_copy(update={"weights": "none"}), ANY_CLASSES)
    check_segmenter_crops(segmenter, config)


def check_segmenter_crops(segmenter: Segmenter, config: Config, images: int | None = None) -> None:
    """Raise ConfigError if the segmenter cannot be trained on its crops; `images` as in `check_views`."""
    settings = config.train_seg
    batch = min(settings.batch_size, images or settings.batch_size)
    if config.segmenter.architecture == "deeplabv3plus":
        batch = max(batch, 2)  # what it needs `too_few_images` says
    check_crop(segmenter, settings.crop, "train_seg.crop", config.segmenter.encoder, batch)


def check_weights_file(key: str, weights: str) -> None:
    """Raise WeightsError if `weights`, the setting named `key`, is a path and there is no such file."""
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise WeightsError(
            f"{key}: there is no weights file {weights}; put it there, or set 'pretrained', 'none' or a path"
        )


def check_networks(config: Config, problems: AllProblems) -> None:
    """Report why a network cannot be built: its name, its settings, or a weights file that is not there."""
    classifier, segmenter = config.classifier, config.segmenter
    names = {"classifier.backbone": classifier.backbone}
    files = {"classifier.weights": classifier.weights, "segmenter.weights": segmenter.weights}
    if classifier.trunk:
        names["classifier.trunk"], files["classifier.trunk_weights"] = classifier.trunk, classifier.trunk_weights
    _check_network(names, try_classifier, config, problems)
    _check_network({"segmenter.encoder": segmenter.encoder}, try_segmenter, config, problems)
    for key, weights in files.items():
        try:
            check_weights_file(key, weights)
        except WeightsError as error:
            problems.report("weights file that is not there", str(error))


def _check_network(
    names: Mapping[str, str], attempt: Callable[[Config], None], config: Config, problems: AllProblems
) -> None:
    """Report the names (by key) that timm lacks. If it has them all, report what `attempt` raises."""
    known = True
    for key, name in names.items():
        try:
            check_name(name)
        except ConfigError as error:
            known = False
            problems.report("network that timm lacks", f"{key}: {error}")
    if known:
        try:
            attempt(config)
        except ConfigError as error:
            problems.report("network that cannot serve", str(error))
