"""TSCD's objective: a decoder learns from the network's own class maps, refined, while the classifier learns.

Source: Xu et al., "Self Correspondence Distillation for End-to-End Weakly-Supervised Semantic Segmentation", AAAI 2023
(arXiv 2302.13765), on Ru et al., "Learning Affinity from Attention", CVPR 2022 (arXiv 2203.02664). Maps are read in
evaluation mode and without the decoder, and one refinement serves both background scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.single_stage import SingleStage, SingleStageOutput
from cam_pipeline.ops.cam import classifier_cam, resize_cam
from cam_pipeline.ops.dense_energy import dense_energy_loss
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.scd import (
    affinity_loss,
    affinity_targets,
    balanced_halves,
    coordinates_within,
    correspondence_loss,
    online_maps,
    random_coordinates,
    refined_labels,
    with_rest,
)
from cam_pipeline.ops.self_regulation import nearest
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise_after
from cam_pipeline.training.objectives.sfc import inside

GUIDE = 2
"""Pixels of the crop for each pixel at which online labels are refined and learned. Source: TSCD."""


class TscdObjective(Objective):
    """Segmentation, affinity, correspondence (SCD) and dense energy, from `tscd.start` on; see `config.TscdSettings`.

    The batch needs "labels" (B, C).
    """

    def __init__(self, network: SingleStage, config: Config) -> None:
        self.network, self.settings = network, config.tscd

    def terms(self, seen: ForwardPass) -> list[Terms]:
        if not rise_after(self.settings.start, seen.progress, 0.0):
            return []
        images, classes, boxes = seen.batch["image"], seen.batch["labels"], seen.batch["box"]
        with torch.autocast(images.device.type, enabled=False):
            guide = _reduced(images)
        own: SingleStageOutput = seen.output
        maps = self._maps(images, own)
        labels = self._labels(guide, maps, classes, boxes)
        terms = self._of_segmentation(own.segmentation, labels)
        if own.affinity is not None and self.settings.affinity_weight:
            terms.append(self._of_affinity(own.affinity, labels, own.features.shape[-2:]))
        if self.settings.scd != "off" and self.settings.scd_weight:
            terms.append(self._of_correspondence(images, own, maps, classes, boxes))
        if self.settings.energy_weight:
            terms.append(self._of_energy(own.segmentation, guide, labels, boxes))
        return terms

    @torch.no_grad()
    def _maps(self, images: Tensor, own: SingleStageOutput) -> Tensor:
        """Raw class maps (B, C, h, w) of the crop: of this pass, and of the classifier at further sizes."""
        classifier, size = self.network.classifier, own.features.shape[-2:]
        total = classifier_cam(own.features.float(), classifier.head.weight)
        with evaluating(classifier):
            for scale in self.settings.map_scales:
                resized = _resized(images, scale, classifier.stride)
                found = self._seen(resized)
                if self.settings.map_flip:
                    found = torch.maximum(found, self._seen(resized.flip(-1)).flip(-1))
                total = total.relu() + resize_cam(found.relu(), (size[0], size[1]))
        return total

    def _seen(self, images: Tensor) -> Tensor:
        classifier = self.network.classifier
        return classifier_cam(classifier(images).features.float(), classifier.head.weight)

    def _labels(self, guide: Tensor, maps: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
        """Online labels (B, H, W) uint8 with an ignore band, at the size of `guide` (B, 3, H, W)."""
        settings = self.settings
        shown = online_maps(maps, classes, settings.peak_floor)
        halves = torch.stack([-(-boxes[:, :2] // GUIDE), boxes[:, 2:] // GUIDE], dim=1).flatten(1)
        return refined_labels(
            guide, shown, classes, settings.low, settings.high, settings.kernel, settings.kernel_iterations, halves
        )

    def _of_segmentation(self, segmentation: Tensor, labels: Tensor) -> list[Terms]:
        """Balanced cross entropy: a term for background and one for classes, as each is a mean over other pixels."""
        size = (labels.shape[-2], labels.shape[-1])
        answer = F.interpolate(segmentation.float(), size, mode="bilinear", align_corners=False)
        background, objects = balanced_halves(answer, labels)
        weight = self.settings.segmentation_weight
        of_objects = (labels > 0) & (labels != IGNORE_INDEX)
        known = (labels != IGNORE_INDEX).float().mean()
        return [
            Terms({"tscd.background": background}, weight, (labels == 0).sum(), {"tscd.known": known}, shown=True),
            Terms({"tscd.objects": objects}, weight, of_objects.sum(), shown=True),
        ]

    def _of_affinity(self, affinity: Tensor, labels: Tensor, grid: torch.Size) -> Terms:
        targets = affinity_targets(nearest(labels, grid), self.settings.affinity_radius)
        return Terms({"tscd.affinity": affinity_loss(affinity, targets)}, self.settings.affinity_weight)

    def _of_correspondence(
        self, images: Tensor, own: SingleStageOutput, maps: Tensor, classes: Tensor, boxes: Tensor
    ) -> Terms:
        """SCD between the crop and a smaller view of it, at points drawn in each."""
        settings, size = self.settings, (images.shape[-2], images.shape[-1])
        smaller = _resized(images, settings.view_scale, self.network.classifier.stride)
        other = self.network.see(smaller)
        head = self.network.classifier.head.weight.detach()
        raw = maps, classifier_cam(other.features.detach().float(), head)
        one, two = own.segmentation.float(), other.segmentation.float()
        here, there = (random_coordinates(len(images), settings.points, device=images.device) for _ in range(2))
        if settings.scd == "released":
            first, second = (online_maps(each) for each in raw)
            loss = correspondence_loss(first, second, one, two, here, there, shift=0.0, centering="batch")
        else:
            first, second = (with_rest(online_maps(each, classes, settings.peak_floor)) for each in raw)
            one, two = (each - each.mean(dim=1, keepdim=True) for each in (one, two))
            here, there = (coordinates_within(each, boxes, size) for each in (here, there))
            loss = correspondence_loss(first, second, one, two, here, there, shift=settings.shift, centering="image")
        return Terms({"tscd.scd": loss}, settings.scd_weight)

    def _of_energy(self, segmentation: Tensor, guide: Tensor, labels: Tensor, boxes: Tensor) -> Terms:
        grid = (segmentation.shape[-2], segmentation.shape[-1])
        spacing = guide.shape[-1] * GUIDE // grid[1]
        roi = inside(boxes, segmentation.shape[-2:], spacing)
        loss = dense_energy_loss(
            segmentation.float().softmax(dim=1), resize_cam(guide, grid), nearest(labels, grid), roi
        )
        return Terms({"tscd.energy": loss}, self.settings.energy_weight, roi.sum(), shown=True)


def _reduced(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), uint8 or 0..1, in 0..1 at the size at which labels are refined."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return F.avg_pool2d(unit, GUIDE)


def _resized(images: Tensor, scale: float, stride: int) -> Tensor:
    """Images in 0..1 at another size, in whole cells of `stride`."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    size = [max(1, round(side * scale / stride)) * stride for side in images.shape[-2:]]
    return F.interpolate(unit, size, mode="bilinear", align_corners=False, antialias=True)
