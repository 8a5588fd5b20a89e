"""What a classifier is trained for: the classes of an image, and any of the methods' objectives beside them."""

from contextlib import ExitStack

from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.training.objectives.acr import AcrObjective
from cam_pipeline.training.objectives.base import ImageLoss, classification_loss
from cam_pipeline.training.objectives.sfc import SfcObjective


def image_loss(classifier: Classifier, config: Config, class_weights: Tensor | None = None) -> ImageLoss:
    """The loss of images (B, 3, H, W), their labels (B, C), the boxes (B, 4) they fill and the share of all steps done.

    `class_weights` (C,): of SFC's losses, all 1 when None. Raises ConfigError for an objective that this classifier
    can not have.
    """
    acr = AcrObjective(classifier, config) if config.objectives.acr else None
    compared = config.objectives.sfc and config.sfc.compares_maps
    sfc = SfcObjective(classifier, config.sfc, class_weights) if compared else None

    def loss(images: Tensor, labels: Tensor, boxes: Tensor, progress: float) -> Tensor:
        views, transform = acr.both_views(images) if acr else (images, "")
        with ExitStack() as taps:  # not open during validation, which needs no maps
            for tap in [objective.tap for objective in (acr, sfc) if objective]:
                taps.enter_context(tap)
            features, logits = classifier(views)
        own, *others = (classification_loss(view, labels) for view in logits.split(len(images)))
        total = own if sfc is None else sfc.loss(images, labels, boxes, features[: len(images)], own, progress)
        if acr:
            total = total + others[0] + acr.consistency(transform, features.shape[-2:], progress)
        return total

    return loss
