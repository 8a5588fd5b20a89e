"""SFC's calibration of a view's class maps: the classifier's maps, and those of class prototypes beside them."""

from collections.abc import Sequence

from torch import Tensor

from cam_pipeline.cams.classes import ClassIds, presence
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.sfc import Calibration, CalibrationHead


def calibrated_maps(
    classifier: Classifier,
    images: Tensor,
    raw: Tensor,
    levels: Sequence[Tensor],
    class_ids: Sequence[ClassIds],
    calibration: Calibration,
) -> tuple[Tensor, Tensor]:
    """Classifier maps and prototype maps of images (B, 3, H, W): (B, 1 + C, h, w) >= 0 twice, background first.

    `raw` maps (B, C, h, w) of a source; `levels`: features of several depths, shallow to deep. The maps of classes that
    are not in `class_ids` are zero, and change neither the background nor the prototypes. The side features are those
    learned with `objectives.sfc`, else the features of the stages as they are. Source: SFC (arXiv 2401.11719), as the
    released code reads maps; but each view is calibrated by itself, so that its cells need not coincide with those of
    its mirror image.
    """
    head = classifier.calibration or CalibrationHead()
    present = presence(class_ids, raw.shape[1], raw.device)
    maps = head.classifier_maps(raw, classifier.normalize(images), levels[-1], present, calibration)
    return maps, head.prototype_maps(maps, levels, present, calibration)
