"""From settings and stored files to networks."""

from pathlib import Path

from cam_pipeline.assembly.fits import check_classes
from cam_pipeline.config import ClassifierSettings
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.store.checkpoints import load_model


def new_classifier(
    settings: ClassifierSettings, num_classes: int, sides: bool = False, comparison: bool = False
) -> Classifier:
    """The classifier that the settings describe, with its starting weights, and with SFC's layers if asked for.

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


def load_classifier(settings: ClassifierSettings, path: Path, classes: tuple[str, ...]) -> Classifier:
    """A trained classifier, in evaluation mode. Raises WeightsError if made for other classes or another backbone."""
    stored = load_model(path)
    check_classes(stored, classes, path)
    learned = [any(key.startswith(f"calibration.{name}.") for key in stored.state) for name in ("sides", "comparison")]
    without_weights = settings.model_copy(update={"weights": "none", "trunk_weights": "none"})
    classifier = new_classifier(without_weights, len(classes), *learned)
    stored.restore(classifier, path)
    classifier.eval()
    return classifier
