"""The segmenter's main objective: the class of every pixel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cam_pipeline.machine.distributed import exchange, world_size
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.losses import (
    clipped_losses,
    collision_cross_entropy,
    neighbours,
    pixel_losses,
    potts_loss,
    segmentation_loss,
    weighted_mean,
)
from cam_pipeline.ops.scd import balanced_halves
from cam_pipeline.training.objectives.base import Batch, ForwardPass, Objective, Terms
from cam_pipeline.training.objectives.sfc import inside

GRID = 4
"""Spacing, in pixels, of the grid on which neighbours are compared: that of DeepLabV3+'s own answer. Between its points
the answer is interpolated, so all pixels say the same for 16 times the work, with differences lost in rounding."""


class SegmentationObjective(Objective):
    """Cross entropy, mean over the labelled pixels of the batch; of all pixels with `ignore_to_background`.

    With `balance` it is half the mean over background pixels, and half that over pixels of classes. With `clip` no
    pixel's loss exceeds a limit (`ops.losses.clipped_losses`). With `powers` means are weighted: by maps of the
    batch, (B, H, W) uint8 for 0..1, such as "confidence", each to its power.
    `potts` is the weight of a further term: the answers of neighbours on a grid of every 4th pixel differ
    (`ops.losses.potts_loss`). It is about the whole image, labelled or not.
    With `soft` the segmenter learns scores in place of labels, by collision cross entropy. Then the batch needs
    "scores" (B, 1 + C, H, W) uint8, of any sum, and 0 outside the image.
    """

    def __init__(
        self,
        weight: float = 1.0,
        balance: bool = False,
        ignore_to_background: bool = False,
        clip: bool = False,
        powers: Mapping[str, float] | None = None,
        potts: float = 0.0,
        soft: bool = False,
    ) -> None:
        self.weight, self.balance, self.ignore_to_background = weight, balance, ignore_to_background
        self.clip, self.powers, self.potts, self.soft = clip, dict(powers or {}), potts, soft

    def terms(self, seen: ForwardPass) -> list[Terms]:
        logits = seen.of_images(seen.output)
        terms = [self._of_scores(logits, seen.batch["scores"])] if self.soft else self._of_labels(logits, seen.batch)
        return [*terms, self._of_neighbours(logits, seen.batch["box"])] if self.potts else terms

    def _of_labels(self, logits: Tensor, batch: Batch) -> list[Terms]:
        mask = batch["mask"]
        if self.ignore_to_background:
            mask = torch.where(mask == IGNORE_INDEX, 0, mask)
        if self.clip or self.powers:
            return self._by_pixel(logits, mask, batch)
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

    def _by_pixel(self, logits: Tensor, mask: Tensor, batch: Batch) -> list[Terms]:
        """The terms, if pixels are not all treated alike."""
        labelled = mask != IGNORE_INDEX
        losses = pixel_losses(logits, mask)
        if self.clip:
            losses = clipped_losses(losses, labelled, mean_of_batch(losses, labelled))
        parts = {"segmentation": labelled}
        if self.balance:
            parts = {"segmentation.background": mask == 0, "segmentation.objects": labelled & (mask > 0)}
        terms = []
        for name, part in parts.items():
            weights = part.to(losses.dtype)
            for name_of_map, power in self.powers.items():
                weights = weights * (batch[name_of_map].to(losses.dtype) / 255) ** power
            terms.append(Terms({name: weighted_mean(losses, weights) / len(parts)}, self.weight, items=weights.sum()))
        return terms

    def _of_scores(self, logits: Tensor, scores: Tensor) -> Terms:
        """The term of soft labels; pixels without a score are left out."""
        targets, outside = soft_targets(scores)
        loss = collision_cross_entropy(logits, targets, outside)
        return Terms({"segmentation": loss}, self.weight, items=(~outside).sum())

    def _of_neighbours(self, logits: Tensor, boxes: Tensor) -> Terms:
        """The Potts term, which does not reach into what pads the images."""
        answers = logits[..., GRID // 2 :: GRID, GRID // 2 :: GRID]
        outside = inside(boxes, answers.shape[-2:], GRID)[:, 0] == 0
        pairs = torch.stack([both.sum() for both in neighbours(outside)]).sum()
        value = self.potts * potts_loss(answers, outside)
        return Terms({"segmentation.potts": value}, self.weight, items=pairs, shown=True)


def soft_targets(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B, K, H, W) >= 0 divided by their sum, float32, and where that is 0, bool (B, H, W)."""
    targets = scores.float()
    total = targets.sum(dim=1, keepdim=True)
    return targets / total.clamp(min=1), total[:, 0] == 0


@torch.no_grad()
def mean_of_batch(losses: Tensor, labelled: Tensor) -> Tensor:
    """The mean of `losses` (B, H, W) over the labelled pixels of all processes' images; 0 without such pixels."""
    total, count = torch.where(labelled, losses, 0).sum(), labelled.sum()
    if world_size() == 1:
        return total / count.clamp(min=1)
    totals, counts = zip(*exchange(float(total), float(count)), strict=True)
    return torch.as_tensor(sum(totals) / max(sum(counts), 1.0), dtype=losses.dtype, device=losses.device)
