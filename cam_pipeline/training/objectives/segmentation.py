"""The segmenter's main objective: the class of every pixel."""

import torch

from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.scd import balanced_halves
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms


class SegmentationObjective(Objective):
    """Cross entropy, mean over the labelled pixels of the batch; of all pixels with `ignore_to_background`.

    With `balance` it is half the mean over background pixels, and half that over pixels of classes.
    """

    def __init__(self, weight: float = 1.0, balance: bool = False, ignore_to_background: bool = False) -> None:
        self.weight, self.balance, self.ignore_to_background = weight, balance, ignore_to_background

    def terms(self, seen: ForwardPass) -> list[Terms]:
        mask = seen.batch["mask"]
        if self.ignore_to_background:
            mask = torch.where(mask == IGNORE_INDEX, 0, mask)
        logits = seen.of_images(seen.output)
        if self.balance:
            background, objects = balanced_halves(logits, mask)
            return [
                Terms({"segmentation.background": background}, self.weight, items=(mask == 0).sum()),
                Terms(
                    {"segmentation.objects": objects}, self.weight, items=((mask > 0) & (mask != IGNORE_INDEX)).sum()
                ),
            ]
        loss = segmentation_loss(logits, mask)
        return [Terms({"segmentation": loss}, self.weight, items=(mask != IGNORE_INDEX).sum())]
