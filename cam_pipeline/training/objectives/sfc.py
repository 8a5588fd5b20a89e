"""SFC's objective: calibrated class maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config, SfcSettings
from cam_pipeline.data.sfc import ImageBank
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.levels import LevelTap, sampled_pixels
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.ops.sfc import (
    bank_appearances,
    distribution_weights,
    peak_normalized,
    prototype_loss,
    scale_loss,
)
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise
from cam_pipeline.training.objectives.classification import classification_loss


def sfc_objective(classifier: Classifier, config: Config, labels: Tensor) -> "SfcObjective":
    """SFC as the config has it, with the image bank and class weights of `labels` (N, C).

    Gives the classifier the layers that SFC's losses train: side layers, and the comparison of pixels.
    """
    settings = config.sfc
    if settings.compares_maps:
        classifier.add_calibration(sides=settings.prototype_weight > 0, comparison=True)
    objective = SfcObjective(classifier, settings, class_weights(labels, config))
    if settings.draws:
        class_ids = [tuple((row.nonzero().flatten() + 1).tolist()) for row in labels]
        bank = ImageBank(class_ids, labels.shape[1], settings.draws, config.run.seed, settings.blank_slots)
        objective.more_views = bank
    return objective


def class_weights(labels: Tensor, config: Config) -> Tensor:
    """Weight of each class in SFC's losses (C,), by how many images have its label: `labels` (N, C)."""
    settings = config.sfc
    if not settings.distribution_weights:
        return torch.ones(labels.shape[1])
    steps = max(1, len(labels) // config.train_cls.batch_size)
    added = settings.extra
    if added is None:
        added = bank_appearances(labels, steps, settings.draws, settings.blank_slots)
    return distribution_weights(labels.sum(dim=0), added)


class SfcObjective(Objective):
    """Draws classifier maps to prototype maps, and the maps of scales 1 and 1/2 to one another.

    Source: SFC (arXiv 2401.11719). The classifier's maps are those of its weights, also if its
    logits are read from a class token. All layers of the backbone learn, not the last two stages alone.
    """

    def __init__(self, classifier: Classifier, settings: SfcSettings, weights: Tensor) -> None:
        """`weights` (C,) of the classes; the classifier has SFC's layers, unless the image bank is all of SFC."""
        self.classifier, self.settings, self.class_weights = classifier, settings, weights.float()
        self.calibration = Calibration(background_over=settings.background_over)
        if settings.compares_maps:
            self.tap = LevelTap(classifier.backbone, classifier.prefix_tokens)
            self.taps = (self.tap,)
        if settings.scale_weight:
            self.main_weight = 0.5  # classification is the mean over both scales

    def terms(self, seen: ForwardPass) -> list[Terms]:
        settings = self.settings
        if not settings.compares_maps:
            return []
        images, labels, boxes = seen.batch["image"], seen.batch["labels"], seen.batch["box"]
        features = seen.of_images(seen.output.features)
        levels = [seen.of_images(level) for level in self.tap.take(features.shape[-2:])]
        self.class_weights = self.class_weights.to(labels.device)
        valid = inside(boxes, features.shape[-2:], self.classifier.stride)
        maps = self._maps(images, labels, features, levels[-1], valid)
        distances, terms = {}, []
        if settings.prototype_weight:
            distances["sfc.prototype"] = self._prototype_distance(maps, levels, labels, valid)
        if settings.scale_weight:
            distances["sfc.scale"], small_logits = self._scale_distance(maps, images, labels, boxes)
            terms.append(Terms({"sfc.classification": classification_loss(small_logits, labels)}, 0.5))
        return [*terms, Terms(distances, rise(seen.progress, settings.ramp))]

    def _prototype_distance(self, maps: Tensor, levels: list[Tensor], labels: Tensor, valid: Tensor) -> Tensor:
        """Weighted distance between classifier maps and prototype maps."""
        head = self.classifier.calibration
        assert head is not None
        prototypes = peak_normalized(head.prototype_maps(maps, levels, labels, self.calibration, valid))
        return prototype_loss(maps, prototypes, self.class_weights, self.settings.prototype_weight)

    def _scale_distance(self, maps: Tensor, images: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted distance between the classifier maps of scales 1 and 1/2, and the logits of scale 1/2."""
        small = self._half_scale(images)
        with self.tap:
            features, logits = self.classifier(small)
        grid = features.shape[-2:]
        deepest = self.tap.take(grid)[-1]
        valid = inside(boxes * small.shape[-1] / images.shape[-1], grid, self.classifier.stride)
        half = self._maps(small, labels, features, deepest, valid)
        down = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
        return scale_loss(down, half, self.class_weights, self.settings.scale_weight), logits

    def _maps(self, images: Tensor, labels: Tensor, features: Tensor, deepest: Tensor, valid: Tensor) -> Tensor:
        """Classifier maps with background (B, K, h, w)."""
        head = self.classifier.calibration
        assert head is not None
        raw = classifier_cam(features, self.classifier.head.weight)
        rows, columns = deepest.shape[-2:]
        pixels = sampled_pixels(images, (rows, columns))
        unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        small = F.interpolate(unit, (rows, columns), mode="bilinear", align_corners=False)
        return head.classifier_maps(raw, self.classifier.normalize(small), deepest, labels, self.calibration, valid)

    def _half_scale(self, images: Tensor) -> Tensor:
        """The images at half their size, rounded to whole cells."""
        height, width = (half_side(side, self.classifier.stride) for side in images.shape[-2:])
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        return F.interpolate(unit, (height, width), mode="bilinear", align_corners=False)


def half_side(side: int, stride: int) -> int:
    """Half of a side in pixels, rounded to whole cells."""
    return max(1, round(side / (2 * stride))) * stride


def inside(boxes: Tensor, grid: torch.Size, stride: int) -> Tensor:
    """(B, 1, h, w) float 0/1: cells whose centre lies in their image's box (top, left, bottom, right in pixels)."""
    rows, columns = ((torch.arange(cells, device=boxes.device) + 0.5) * stride for cells in grid)
    top, left, bottom, right = (side[:, None] for side in boxes.unbind(dim=1))
    high, wide = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (high[:, None, :, None] & wide[:, None, None, :]).float()
