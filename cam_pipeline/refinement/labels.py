"""From scores to pseudo-labels, some pixels of which stay undecided."""

import numpy as np

from cam_pipeline.config import LabelSettings
from cam_pipeline.data.images import UInt8
from cam_pipeline.data.marks import PSEUDO, Marks
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import complete_labels, labels_from_scores, merge_high_low
from cam_pipeline.store.scores import StoredScores


def pseudo_labels(found: StoredScores, settings: LabelSettings) -> UInt8:
    """Labels (H, W) uint8 with 255 at the pixels that `labels.undecided` excludes."""
    if settings.undecided == "scores":
        return labels_from_scores(found.scores, found.class_ids, settings.low, settings.high)
    if settings.undecided == "backgrounds":
        return merge_high_low(found.labels["high"], found.labels["low"])
    complete = complete_labels(found.scores, found.class_ids)
    return np.where(complete == found.labels["unrefined"], complete, np.uint8(IGNORE_INDEX))


def with_marks(name: str, labels: UInt8, confidence: UInt8, marks: Marks) -> tuple[UInt8, UInt8]:
    """Labels and confidence (H, W) uint8 with the pixels of `marks` in them, whose confidence is 255.

    Raises DataError if the marks are not of the labels' size; `name` is the image's id.
    """
    if marks.labels.shape != labels.shape:
        raise DataError(
            f"image {name}: its clicks and scribbles are on an image of {marks.labels.shape} (height, width), its "
            f"labels are of {labels.shape}: the image was replaced meanwhile; start the same command again"
        )
    said = marks.origin != PSEUDO
    return np.where(said, marks.labels, labels), np.where(said, np.uint8(255), confidence)
