"""The segmenter's main objective: the class of every pixel."""

import torch

from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms


class SegmentationObjective(Objective):
    """Cross entropy, mean over the labelled pixels of the batch; of all pixels with `ignore_to_background`."""

    def __init__(self, weight: float = 1.0, ignore_to_background: bool = False) -> None:
        self.weight, self.ignore_to_background = weight, ignore_to_background

    def terms(self, seen: ForwardPass) -> list[Terms]:
        mask = seen.batch["mask"]
        if self.ignore_to_background:
            mask = torch.where(mask == IGNORE_INDEX, 0, mask)
        loss = segmentation_loss(seen.of_images(seen.output), mask)
        return [Terms({"segmentation": loss}, self.weight, items=(mask != IGNORE_INDEX).sum())]
