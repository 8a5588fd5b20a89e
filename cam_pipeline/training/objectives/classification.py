"""The classifier's main objective: which classes an image shows."""

import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin (B,): binary cross entropy of every class, mean over the classes."""
    return F.multilabel_soft_margin_loss(logits.float(), labels, reduction="none")


class ClassificationObjective(Objective):
    """The classes of the images themselves. What other objectives make of added views is theirs."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def terms(self, seen: ForwardPass) -> list[Terms]:
        logits = seen.output.logits
        loss = classification_loss(seen.of_images(logits), seen.batch["labels"])
        return [Terms({"classification": loss}, self.weight)]
