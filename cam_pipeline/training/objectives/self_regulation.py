"""Self-Regulation's objective: exits of the segmenter learn the labels, and the extreme ones teach the others.

Source: Zhang et al., "Self-Regulation for Semantic Segmentation", ICCV 2021 (arXiv 2108.09702). Unlike the released
code, every exit learns on its own grid, and the segmenter's answer is compared with others on the shallowest exit's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.self_regulation import Exit, Exits, PyramidTap, exit_levels
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.self_regulation import nearest, presence_loss, sr_feature_loss, sr_label_loss
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise_after


class SelfRegulationObjective(Objective):
    """Multi-exit training, SR-L (deep teaches shallow) and SR-F (shallow teaches deep)."""

    def __init__(self, segmenter: Segmenter, config: Config, labels: Tensor) -> None:
        """Gives the segmenter exits. `labels` (N, C) of the training images; a row of NaN is not known.

        Raises ConfigError for an encoder without levels that exits could hang on.
        """
        self.settings = settings = config.self_regulation
        self.labels = labels
        encoder = segmenter.pretrained_half()
        info = encoder.feature_info
        try:
            levels = exit_levels(info.reduction(), settings.shallowest_stride)  # type: ignore[union-attr, operator]
        except ValueError as error:
            raise ConfigError(f"self_regulation.shallowest_stride: {error}") from error
        widths = info.channels()  # type: ignore[union-attr, operator]
        light = settings.heads == "light"
        segmenter.exits = Exits([widths[level] for level in levels], 1 + labels.shape[1], light)
        self.exits = segmenter.exits
        self.tap = PyramidTap(encoder, levels)
        self.taps = (self.tap,)
        self.share = 1 / len(levels) if settings.reduction == "mean" else 1.0
        self.main_weight = settings.segmentation_weight * self.share

    def terms(self, seen: ForwardPass) -> list[Terms]:
        settings, mask = self.settings, seen.batch["mask"]
        if settings.ignore_to_background:
            mask = torch.where(mask == IGNORE_INDEX, 0, mask)
        levels = [seen.of_images(level) for level in self.tap.take()]
        exits: list[Exit] = self.exits(levels, seen.of_images(seen.output))
        terms = self._of_labels(exits, mask)
        if settings.class_weight:
            terms.append(self._of_presence(exits, seen.batch["index"], mask))
        taught = self._taught(seen.progress)
        if taught and settings.label_weight:
            terms += self._deep_to_shallow(exits, mask, taught)
        if taught and settings.feature_weight:
            terms += self._shallow_to_deep(exits, mask, taught)
        return terms

    def _taught(self, progress: float) -> float:
        """The share of their weights with which exits teach each other."""
        return rise_after(self.settings.start, progress, self.settings.ramp)

    def _of_labels(self, exits: list[Exit], mask: Tensor) -> list[Terms]:
        """Every exit but the segmenter's own answer, which is the main objective's, learns the labels of its grid."""
        terms = []
        for number, one in enumerate(exits[:-1], start=1):
            labels = nearest(mask, one.logits.shape[-2:])
            value = self.settings.segmentation_weight * self.share * segmentation_loss(one.logits, labels)
            terms.append(Terms({f"sr.segmentation_{number}": value}, items=(labels != IGNORE_INDEX).sum()))
        return terms

    def _of_presence(self, exits: list[Exit], index: Tensor, mask: Tensor) -> Terms:
        """Every exit learns which classes the image shows."""
        by_image = self.settings.class_labels == "image"
        if by_image:
            labels = self.labels.to(mask.device)[index]
        else:
            labels = shown_labels(mask, exits[0].presence.shape[1])
        losses = [presence_loss(one.presence[:, 1:] if by_image else one.presence, labels) for one in exits]
        known = (~labels.isnan()).any(dim=1).sum()
        return Terms({"sr.presence": self.settings.class_weight * self.share * torch.stack(losses).sum()}, items=known)

    def _deep_to_shallow(self, exits: list[Exit], mask: Tensor, taught: float) -> list[Terms]:
        """SR-L."""
        settings, (*students, teacher) = self.settings, exits
        weight = settings.label_weight * self._of_one(len(students))
        terms: list[Terms] = []
        for number, student in enumerate(students, start=1):
            name = f"sr.deep_to_shallow_{number}"
            if settings.label_mode == "presence":
                loss = sr_label_loss(student.presence, teacher.presence)
                least = sr_label_loss(teacher.presence, teacher.presence).detach()
                figures = {f"{name}_apart": loss.detach() - least}
                terms.append(Terms({name: weight * loss}, taught, figures=figures))
            else:
                ignore = self._left_out(teacher.logits, mask, student.logits.shape[-2:])
                loss = sr_label_loss(student.logits, teacher.logits, "pixel", settings.temperature, ignore)
                figures = {} if terms else {"sr.deep_right": right(teacher.logits, mask, student.logits.shape[-2:])}
                terms.append(Terms({name: weight * loss}, taught, items=(~ignore).sum(), figures=figures))
        return terms

    def _shallow_to_deep(self, exits: list[Exit], mask: Tensor, taught: float) -> list[Terms]:
        """SR-F."""
        settings, (teacher, *students) = self.settings, exits
        weight = settings.feature_weight * self._of_one(len(students))
        soft = settings.feature_mode == "soft"
        taught_by = teacher.features if soft else teacher.logits
        terms: list[Terms] = []
        for number, student in enumerate(students, start=2):
            maps = student.features if soft else student.logits
            if maps.shape[-2] > taught_by.shape[-2]:  # the segmenter's answer, at the image's size
                maps = F.interpolate(maps, taught_by.shape[-2:], mode="area")
            ignore = self._left_out(teacher.logits, mask, maps.shape[-2:])
            loss = sr_feature_loss(maps, taught_by, settings.feature_mode, settings.temperature, ignore)
            figures = {} if terms else {"sr.shallow_right": right(teacher.logits, mask, teacher.logits.shape[-2:])}
            name = f"sr.shallow_to_deep_{number}"
            terms.append(Terms({name: weight * loss}, taught, items=(~ignore).sum(), figures=figures))
        return terms

    def _of_one(self, students: int) -> float:
        """The share of a weight that one of so many students has."""
        return 1 / students if self.settings.reduction == "mean" else 1.0

    def _left_out(self, teacher: Tensor, mask: Tensor, size: torch.Size) -> Tensor:
        """Pixels (B, h, w) bool of a grid at which the teacher's logits (B, K, H, W) are not learned from."""
        labels = nearest(mask, size)
        gate = self.settings.gate
        if gate == "ignored":
            return labels != IGNORE_INDEX
        left_out = labels == IGNORE_INDEX
        if gate == "confidence":
            sure, _ = teacher.detach().float().softmax(dim=1).max(dim=1)
            left_out = left_out | (nearest(sure, size) < self.settings.confidence)
        if gate == "agreement":
            left_out = left_out | (nearest(teacher.argmax(dim=1), size) != labels)
        return left_out


@torch.no_grad()
def right(teacher: Tensor, mask: Tensor, size: torch.Size) -> Tensor:
    """Share of the labelled pixels of a grid at which the best channel of logits (B, K, H, W) is the label."""
    labels = nearest(mask, size)
    best = nearest(teacher, size).argmax(dim=1)
    labelled = labels != IGNORE_INDEX
    return ((best == labels) & labelled).sum() / labelled.sum().clamp(min=1)


def shown_labels(mask: Tensor, num_labels: int) -> Tensor:
    """(B, K) float 0/1: the labels that masks (B, H, W) have, background included."""
    return torch.stack([(mask == label).flatten(1).any(dim=1) for label in range(num_labels)], dim=1).float()
