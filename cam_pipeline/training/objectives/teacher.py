"""The EMA teacher's objective: the average of the weights sees the plain view, the network learns it on a strong one.

Sources: Mean Teacher (arXiv 1703.01780), UniMatch (arXiv 2208.09910), BECO; see `ops.teacher`.
"""

import torch
from torch import Tensor
from torch.func import functional_call

from cam_pipeline.config import Config
from cam_pipeline.machine.device import uncompiled
from cam_pipeline.machine.distributed import rank, world_size
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.teacher import (
    blurred,
    cutmix_boxes,
    pasted,
    recolored,
    restricted_targets,
    teacher_loss,
    within,
)
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise_after
from cam_pipeline.training.objectives.moving_average import averages_of

DRAWN = 11
"""Random numbers for each strong view."""


class TeacherObjective(Objective):
    """The teacher sees the images, the network strong views of them, which join the batch once the teacher teaches."""

    def __init__(self, segmenter: Segmenter, config: Config, labels: Tensor) -> None:
        """`labels` (N, C) of the training images; NaN is not known. The segmenter's `average` is the teacher."""
        self.segmenter, self.settings, self.run = segmenter, config.teacher, config.run
        self.labels = labels
        self.progress = 0.0
        self.boxes = torch.zeros(0, 4)

    @property
    def weight(self) -> float:
        """The weight of the term at this step; 0 before the start."""
        return self.settings.weight * rise_after(self.settings.start, self.progress, self.settings.ramp)

    def before_pass(self, progress: float) -> None:
        self.progress = progress

    def added_views(self, images: Tensor) -> Tensor | None:
        """The images in other colours, with boxes of one another. None before the start."""
        settings = self.settings
        if not self.weight:
            return None
        count = len(images)
        drawn = torch.rand(count * world_size(), DRAWN)  # for all processes alike; each has its part
        drawn = drawn[rank() * count : (rank() + 1) * count].to(images.device)
        height, width = images.shape[-2:]
        area, aspect = settings.cutmix_area, settings.cutmix_aspect
        self.boxes = cutmix_boxes(drawn[:, :5], height, width, settings.cutmix, area, aspect)
        with torch.autocast(images.device.type, enabled=False):
            views = pasted(self._changed(images, drawn[:, 5:]), self.boxes)
        return views

    def _changed(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images in other colours, by random numbers (B, 6)."""
        settings, whole = self.settings, images.dtype == torch.uint8
        views = images.float() / 255 if whole else images
        brightness, contrast, saturation = (1 + settings.color_jitter * (2 * drawn[:, :3] - 1)).unbind(dim=1)
        views = recolored(views, brightness, contrast, saturation, drawn[:, 3] < settings.greyscale)
        if settings.blur:
            views = blurred(views, torch.where(drawn[:, 4] < settings.blur, 0.1 + 1.9 * drawn[:, 5], 0))
        return (255 * views).round().to(torch.uint8) if whole else views

    def terms(self, seen: ForwardPass) -> list[Terms]:
        if not self.weight:
            return []
        targets, counted = self._targets(seen)
        targets, counted = pasted(targets, self.boxes), pasted(counted, self.boxes)
        _, logits = seen.of_images_and_views(seen.output)
        loss = teacher_loss(logits, targets, counted)
        sure = (targets != IGNORE_INDEX).sum() / counted.sum().clamp(min=1)
        shown = self.settings.pixels == "all"
        figures = {"teacher.sure": sure}
        return [Terms({"teacher": loss}, self.weight, items=counted.sum(), figures=figures, shown=shown)]

    @torch.no_grad()
    def _targets(self, seen: ForwardPass) -> tuple[Tensor, Tensor]:
        """What the teacher says of the images (B, H, W), 255 where it is unsure, and the pixels that it may teach."""
        images, mask = seen.batch["image"], seen.batch["mask"]
        with evaluating(self.segmenter), uncompiled(self.run):
            logits = functional_call(self.segmenter, averages_of(self.segmenter), (images,))
        labels = self.labels.to(images.device)[seen.batch["index"]]
        best, confidence = restricted_targets(logits, labels)
        counted = within(seen.batch["box"], *mask.shape[-2:])
        if self.settings.pixels == "unsure":
            counted = counted & (mask == IGNORE_INDEX)
        return torch.where(counted & (confidence >= self.settings.confidence), best, IGNORE_INDEX), counted
