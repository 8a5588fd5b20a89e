"""From settings and stored files to a segmenter."""

from pathlib import Path

from cam_pipeline.assembly.fits import check_classes
from cam_pipeline.config import SegmenterSettings
from cam_pipeline.models.segmenter import Segmenter, build_segmenter
from cam_pipeline.store.checkpoints import load_model


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
    check_classes(stored, classes, path)
    segmenter = new_segmenter(settings.model_copy(update={"weights": "none"}), len(classes))
    stored.restore(segmenter, path)
    segmenter.eval()
    return segmenter
