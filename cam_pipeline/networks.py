"""From settings and stored files to networks."""

from pathlib import Path

import torch

from cam_pipeline.config import CamSettings, ClassifierSettings, SegmenterSettings
from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.cams import CamReading, Propagation
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.models.comparison import Border, FeatureWalk
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.models.segmenter import Segmenter, build_segmenter
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.store.checkpoints import StoredModel, load_model


def new_classifier(
    settings: ClassifierSettings, num_classes: int, sides: bool = False, comparison: bool = False
) -> Classifier:
    """The classifier that the settings describe, with its starting weights, and with SFC's layers where asked for.

    Errors: see `build_classifier`, `Classifier.add_calibration`.
    """
    trunk = None
    if settings.trunk:
        trunk = Trunk(settings.trunk, settings.trunk_args, settings.trunk_weights)
    classifier = build_classifier(
        settings.backbone,
        num_classes,
        arguments=settings.backbone_args,
        weights=settings.weights,
        stride=settings.stride,
        freeze_batch_norm=settings.freeze_batch_norm,
        mean=settings.mean,
        std=settings.std,
        pooling=settings.pooling,
        trunk_lr_factor=settings.trunk_lr_factor,
        similar_attention=settings.similar_attention,
        trunk=trunk,
    )
    if sides or comparison:
        classifier.add_calibration(sides, comparison)
    return classifier


def cam_reading(settings: CamSettings, classifier: Classifier) -> CamReading:
    """How maps are to be read out of this classifier. Raises ConfigError when it can not be done."""
    propagation: Propagation | FeatureWalk | None = None
    if settings.propagate == "features":
        propagation = FeatureWalk(settings.walk_radius, settings.walk_steps, settings.walk_power)
    if settings.propagate == "attention":
        propagation = Propagation(settings.attention_layers, settings.attention_steps, settings.attention_normalize)
    border = None
    if settings.border:
        border = Border(settings.border, settings.border_steps, settings.border_power)
    calibration = None
    if settings.calibration == "sfc":
        calibration = Calibration(settings.background_over, settings.seed_background, settings.correlation_steps)
    reading = CamReading(
        source=settings.source,
        map_function=settings.map_function,
        start_layer=settings.start_layer,
        propagation=propagation,
        calibration=calibration,
        border=border,
        levels=settings.walk_levels,
    )
    try:
        reading.check(classifier)
    except ValueError as error:
        keys = ["source", "propagate", "calibration", *(["border", "walk_levels"] if reading.compares else [])]
        asked = ", ".join(f"cam.{key} = {getattr(settings, key)!r}" for key in keys)
        raise ConfigError(f"{asked}: this classifier does not allow it: {error}") from error
    return reading


def load_classifier(settings: ClassifierSettings, path: Path, classes: tuple[str, ...]) -> Classifier:
    """A trained classifier, in evaluation mode. Raises WeightsError when made for other classes or another backbone."""
    stored = load_model(path)
    _check_classes(stored, classes, path)
    learned = [any(key.startswith(f"calibration.{name}.") for key in stored.state) for name in ("sides", "comparison")]
    without_weights = settings.model_copy(update={"weights": "none", "trunk_weights": "none"})
    classifier = new_classifier(without_weights, len(classes), *learned)
    stored.restore(classifier, path)
    classifier.eval()
    return classifier


def new_segmenter(settings: SegmenterSettings, num_classes: int) -> Segmenter:
    """The segmenter that the settings describe, with outputs for background and `num_classes` classes."""
    return build_segmenter(
        settings.architecture,
        settings.encoder,
        1 + num_classes,
        arguments=settings.encoder_args,
        weights=settings.weights,
        stride=settings.stride,
        freeze_batch_norm=settings.freeze_batch_norm,
        mean=settings.mean,
        std=settings.std,
    )


def load_segmenter(settings: SegmenterSettings, path: Path, classes: tuple[str, ...]) -> Segmenter:
    """A trained segmenter, in evaluation mode. Errors as `load_classifier`."""
    stored = load_model(path)
    _check_classes(stored, classes, path)
    segmenter = new_segmenter(settings.model_copy(update={"weights": "none"}), len(classes))
    stored.restore(segmenter, path)
    segmenter.eval()
    return segmenter


@torch.no_grad()
def check_crop(network: PretrainedHalf, crop: int, key: str) -> None:
    """Raise ConfigError, naming the key `key`, when a network on the CPU can not take crops of this size."""
    try:
        network.eval()(torch.zeros(1, 3, crop, crop))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key} = {crop} does not suit the network: {error}") from error


def _check_classes(stored: StoredModel, classes: tuple[str, ...], path: Path) -> None:
    made_for = tuple(stored.metadata["classes"])
    if made_for != classes:
        raise WeightsError(
            f"{path} was made for the classes {', '.join(made_for)}, the data has {', '.join(classes)}; "
            "set data.classes to the former, or make it again with --force"
        )
