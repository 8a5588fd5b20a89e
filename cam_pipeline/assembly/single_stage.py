"""From settings and stored files to a network that classifies and segments."""

from pathlib import Path

from cam_pipeline.assembly.classifier import load_classifier, new_classifier
from cam_pipeline.assembly.fits import check_classes
from cam_pipeline.assembly.segmenter import load_segmenter
from cam_pipeline.config import Config
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.single_stage import SingleStage, SingleStageSegmenter
from cam_pipeline.store.checkpoints import load_model

FILE = "e2e.safetensors"
"""The single-stage network in a run folder."""


def new_single_stage(config: Config, num_classes: int) -> SingleStage:
    """The network that `[classifier]` and `[tscd]` describe. Errors as `new_classifier` and `SingleStage`."""
    settings = config.tscd
    return SingleStage(
        new_classifier(config.classifier, num_classes),
        1 + num_classes,
        settings.decoder_width,
        affinity=settings.affinity,
        symmetric=settings.scd != "released",
    )


def load_single_stage(config: Config, path: Path, classes: tuple[str, ...]) -> SingleStage:
    """A trained network, in evaluation mode. Errors as `load_classifier`."""
    stored = load_model(path)
    check_classes(stored, classes, path)
    without_weights = config.classifier.model_copy(update={"weights": "none", "trunk_weights": "none"})
    network = new_single_stage(config.model_copy(update={"classifier": without_weights}), len(classes))
    stored.restore(network, path)
    network.eval()
    return network


def trained_classifier(config: Config, path: Path, classes: tuple[str, ...]) -> Classifier:
    """The classifier in a file of either kind, in evaluation mode. Errors as `load_classifier`."""
    if path.name == FILE:
        return load_single_stage(config, path, classes).classifier
    return load_classifier(config.classifier, path, classes)


def trained_segmenter(config: Config, path: Path, classes: tuple[str, ...]) -> Segmenter:
    """The segmenter in a file of either kind, in evaluation mode. Errors as `load_classifier`."""
    if path.name == FILE:
        segmenter = SingleStageSegmenter(load_single_stage(config, path, classes))
        segmenter.eval()
        return segmenter
    return load_segmenter(config.segmenter, path, classes)
