"""Builds both networks of a config without weights, to find before training what a stage would stop at."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.assembly.fits import check_crop
from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.assembly.single_stage import new_single_stage
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.config import Config
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.errors import ConfigError, OutOfMemory, WeightsError
from cam_pipeline.models.backbone import check_name
from cam_pipeline.models.classifier import Classifier, check_start
from cam_pipeline.models.hub import check_pretrained
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.single_stage import SingleStage
from cam_pipeline.training.objectives import classifier_objectives, segmenter_objectives
from cam_pipeline.training.objectives.sfc import half_side

ANY_CLASSES = 2
"""The number of classes does not decide whether a network is possible, and only the data tells it."""


def try_classifier(config: Config) -> None:
    """Raise ConfigError if the classifier cannot be built, trained or read as the config says, or WeightsError."""
    settings = config.classifier
    check_start(settings.weights, bool(settings.trunk), settings.similar_attention)
    weights = {"weights": _tried(settings.weights), "trunk_weights": _tried(settings.trunk_weights)}
    classifier = new_classifier(settings.model_copy(update=weights), ANY_CLASSES)
    classifier_objectives(classifier, config, labels=torch.zeros(0, ANY_CLASSES))
    check_views(classifier, config)
    cam_reading(config.cam, classifier)


def check_views(classifier: Classifier, config: Config, images: int | None = None) -> None:
    """Raise ConfigError if the classifier cannot be trained on its crops, and on what objectives make of them.

    `images`: how many there are, if that is known; a batch is no larger. A part of it must do, if it is divided.
    """
    settings, name = config.train_cls, config.classifier.backbone
    batch = settings.at_once(images)
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
    """Raise ConfigError if the segmenter cannot be built, or not be trained on its crops or labels, or WeightsError."""
    check_labels_of(config)
    weights = {"weights": _tried(config.segmenter.weights)}
    segmenter = new_segmenter(config.segmenter.model_copy(update=weights), ANY_CLASSES)
    segmenter_objectives(segmenter, config, labels=torch.zeros(0, ANY_CLASSES))
    check_segmenter_crops(segmenter, config)


def try_single_stage(config: Config) -> None:
    """Raise ConfigError if the single stage cannot be built or not be trained on its crops, or WeightsError."""
    settings = config.classifier
    check_start(settings.weights, bool(settings.trunk), settings.similar_attention)
    weights = {"weights": _tried(config.classifier.weights), "trunk_weights": _tried(config.classifier.trunk_weights)}
    tried = config.model_copy(update={"classifier": config.classifier.model_copy(update=weights)})
    check_single_stage_crops(new_single_stage(tried, ANY_CLASSES), config)


def check_single_stage_crops(network: SingleStage, config: Config, images: int | None = None) -> None:
    """Raise ConfigError if the single stage cannot be trained on its crops; `images` as in `check_views`."""
    settings = config.train_e2e
    if settings.crop % network.classifier.stride:
        raise ConfigError(
            f"train_e2e.crop = {settings.crop} must be a multiple of the stride {network.classifier.stride}, so that "
            "crops are whole cells"
        )
    check_crop(network, settings.crop, "train_e2e.crop", config.classifier.backbone, settings.at_once(images))


def check_labels_of(config: Config) -> None:
    """Raise ConfigError if the segmenter is to be trained on pseudo-labels that its split will not have."""
    split, splits = config.data.train, config.cam.splits
    if config.train_seg.from_labels and split not in splits:
        raise ConfigError(
            f"cam.splits = {list(splits)} lacks '{split}', on whose pseudo-labels the segmenter is trained; "
            f"set cam.splits = {[split, *splits]}"
        )


def check_segmenter_crops(segmenter: Segmenter, config: Config, images: int | None = None) -> None:
    """Raise ConfigError if the segmenter cannot be trained on its crops; `images` as in `check_views`."""
    settings = config.train_seg
    batch = settings.at_once(images)
    if config.segmenter.architecture == "deeplabv3plus":
        batch = max(batch, 2)  # what it needs `too_few_images` says
    if config.train_seg.teacher:
        batch *= 2  # a strong view each
    check_crop(segmenter, settings.crop, "train_seg.crop", config.segmenter.encoder, batch)


def check_weights(key: str, weights: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Raise WeightsError if the weights that the setting `key` asks for cannot be had: a file, or those of timm.

    `name` and `arguments`: of the timm model that they are for.
    """
    if weights == "pretrained":
        check_pretrained(key, name, arguments)
    elif weights != "none" and not Path(weights).is_file():
        raise WeightsError(
            f"{key}: there is no weights file {weights}; put it there, or set 'pretrained', 'none' or a path"
        )


def _tried(weights: str) -> str:
    """The weights that a trial starts from: those of a file, to see whether they fit, else none."""
    return weights if Path(weights).is_file() else "none"


def check_networks(config: Config, problems: AllProblems) -> None:
    """Report why a network cannot be built, or not start as asked: name, settings, or weights that are missing."""
    classifier, segmenter = config.classifier, config.segmenter
    backbone = {"classifier.backbone": classifier.backbone}
    trunk = {"classifier.trunk": classifier.trunk} if classifier.trunk else {}
    encoder = {"segmenter.encoder": segmenter.encoder}
    if config.single_stage:
        _check_network(backbone | trunk, try_single_stage, config, problems)
    else:
        _check_network(backbone | trunk, try_classifier, config, problems)
        _check_network(encoder, try_segmenter, config, problems)
    if not (classifier.trunk and classifier.weights == "pretrained"):  # there are none, as `try_classifier` has said
        weights, arguments = classifier.weights, classifier.backbone_args
        _check_weights("classifier.weights", weights, classifier.backbone, arguments, problems)
    if not config.single_stage:
        _check_weights("segmenter.weights", segmenter.weights, segmenter.encoder, segmenter.encoder_args, problems)
    if classifier.trunk:
        of_trunk = "classifier.trunk_weights"
        _check_weights(of_trunk, classifier.trunk_weights, classifier.trunk, classifier.trunk_args, problems)


def _check_weights(key: str, weights: str, name: str, arguments: Mapping[str, Any], problems: AllProblems) -> None:
    """Report weights that cannot be had."""
    try:
        check_weights(key, weights, name, arguments)
    except WeightsError as error:
        kind = "weights that cannot be loaded" if weights == "pretrained" else "weights file that is not there"
        problems.report(kind, str(error))


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
        except (ConfigError, OutOfMemory, WeightsError) as error:
            problems.report("network that cannot serve", str(error))
