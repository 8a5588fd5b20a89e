"""SFC's objective: calibrated class maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config, SfcSettings
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.levels import LevelTap, sampled_pixels
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.ops.sfc import peak_normalized, prototype_loss, scale_loss
from cam_pipeline.training.objectives.base import classification_loss, rise


def layers_of_sfc(config: Config) -> tuple[bool, bool]:
    """Whether a loss of SFC teaches side layers, and the comparison of pixels."""
    on, settings = config.objectives.sfc, config.sfc
    return on and settings.prototype_weight > 0, on and settings.compares_maps


class SfcObjective:
    """Classifier maps drawn to prototype maps, and those of scales 1 and 1/2 to one another.

    Source: SFC (arXiv 2401.11719), specification section 3. The maps of the classifier are those of its weights, also
    where logits are read from a class token. All layers of the backbone learn, not the last two stages alone.
    """

    def __init__(self, classifier: Classifier, settings: SfcSettings, class_weights: Tensor | None) -> None:
        self.classifier, self.settings = classifier, settings
        self.tap = LevelTap(classifier.backbone, classifier.prefix_tokens)
        self.calibration = Calibration(background_over=settings.background_over)
        weights = torch.ones(classifier.head.out_features) if class_weights is None else class_weights
        self.class_weights = weights.float()

    def loss(
        self, images: Tensor, labels: Tensor, boxes: Tensor, features: Tensor, classification: Tensor, progress: float
    ) -> Tensor:
        """All of SFC's loss; `features` and `classification` are those of `images`, which the tap saw."""
        levels = [level[: len(images)] for level in self.tap.take(features.shape[-2:])]
        self.class_weights = self.class_weights.to(labels.device)
        head, weights = self.classifier.calibration, self.class_weights
        assert head is not None
        valid = inside(boxes, features.shape[-2:], self.classifier.stride)
        maps = self._maps(images, labels, features, levels[-1], valid)
        total: Tensor = images.new_zeros((), dtype=torch.float32)
        if self.settings.prototype_weight:
            prototypes = peak_normalized(head.prototype_maps(maps, levels, labels, self.calibration, valid))
            total = total + prototype_loss(maps, prototypes, weights, self.settings.prototype_weight)
        if self.settings.scale_weight:
            small = self._half_scale(images)
            with self.tap:
                small_features, small_logits = self.classifier(small)
            deepest, grid = self.tap.take(small_features.shape[-2:])[-1], small_features.shape[-2:]
            small_valid = inside(boxes * small.shape[-1] / images.shape[-1], grid, self.classifier.stride)
            half = self._maps(small, labels, small_features, deepest, small_valid)
            down = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
            total = total + scale_loss(down, half, weights, self.settings.scale_weight)
            classification = (classification + classification_loss(small_logits, labels)) / 2
        return classification + rise(progress, self.settings.ramp) * total

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
        """The images at half their size, as far as whole cells allow."""
        stride = self.classifier.stride
        height, width = (max(1, round(side / (2 * stride))) * stride for side in images.shape[-2:])
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        return F.interpolate(unit, (height, width), mode="bilinear", align_corners=False)


def inside(boxes: Tensor, grid: torch.Size, stride: int) -> Tensor:
    """(B, 1, h, w) float 0/1: cells whose centre lies in their image's box (top, left, bottom, right in pixels)."""
    rows, columns = ((torch.arange(cells, device=boxes.device) + 0.5) * stride for cells in grid)
    top, left, bottom, right = (side[:, None] for side in boxes.unbind(dim=1))
    high, wide = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (high[:, None, :, None] & wide[:, None, None, :]).float()
