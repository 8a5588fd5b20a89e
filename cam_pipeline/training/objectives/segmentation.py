"""The segmenter's main objective: the class of every pixel."""

from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms


class SegmentationObjective(Objective):
    """Cross entropy, mean over the labelled pixels of the batch."""

    def terms(self, seen: ForwardPass) -> list[Terms]:
        mask = seen.batch["mask"]
        loss = segmentation_loss(seen.of_images(seen.output), mask)
        return [Terms({"segmentation": loss}, items=(mask != IGNORE_INDEX).sum())]
