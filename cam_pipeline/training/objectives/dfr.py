"""A regularised loss in the style of DFR: pixels that are alike should get the same answer, labelled or not.

Source: arXiv 2108.01296, of which only the abstract is public to us; see `ops.dfr`.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.models.dfr import ConsistencyHead, channels_first, resized
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.self_regulation import PyramidTap, exit_levels
from cam_pipeline.ops.dfr import consistency, regularized
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.self_regulation import nearest
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise_after
from cam_pipeline.training.objectives.segmentation import GRID
from cam_pipeline.training.objectives.sfc import inside

logger = logging.getLogger(__name__)

IMAGENET_STD = (0.229, 0.224, 0.225)
"""What colours are divided by, whatever the encoder's own statistics are, so that `sigma_rgb` keeps its meaning."""
KINDS = ("background", "objects", "others")
"""Of pairs, in the order of `ops.dfr.Consistency`."""
LEAST_ALIKE, MOST_ALIKE = 0.01, 0.98
"""Shares of the weights by place alone from which on `sigma_rgb` tells nothing apart."""


class DfrObjective(Objective):
    """The regularised loss on the segmenter's answer, and the head that learns which pixels are alike."""

    def __init__(self, segmenter: Segmenter, config: Config, labels: Tensor) -> None:
        """Gives the segmenter the head, if there is one. `labels` are not used.

        Raises ConfigError for an encoder without the levels that the head would read.
        """
        self.settings = settings = config.dfr
        self.segmenter = segmenter
        self.looked = False
        if settings.features == "none":
            return
        encoder = segmenter.pretrained_half()
        info = encoder.feature_info
        strides, widths = info.reduction(), info.channels()  # type: ignore[union-attr, operator]
        levels = [len(strides) - 1]
        if settings.features == "head":
            try:
                levels = exit_levels(strides, settings.shallowest_stride)
            except ValueError as error:
                raise ConfigError(f"dfr.shallowest_stride: {error}") from error
            segmenter.consistency = ConsistencyHead([widths[level] for level in levels], settings.dim)
        self.widths = [widths[level] for level in levels]
        self.tap = PyramidTap(encoder, levels)
        self.taps = (self.tap,)

    def terms(self, seen: ForwardPass) -> list[Terms]:
        settings = self.settings
        device = seen.batch["image"].device
        levels = [] if settings.features == "none" else [seen.of_images(level) for level in self.tap.take()]
        with torch.autocast(device.type, enabled=False):
            logits = seen.of_images(seen.output)[..., GRID // 2 :: GRID, GRID // 2 :: GRID]
            probabilities = logits.float().softmax(dim=1)
        features = self._features(levels, probabilities)
        terms = []
        if weight := settings.weight * rise_after(settings.start, seen.progress, settings.ramp):
            terms.append(self._of_pairs(probabilities, features, seen, weight))
        if features is not None and settings.features == "head" and settings.consistency_weight:
            terms += self._of_features(features, probabilities.detach(), seen)
        return terms

    def _features(self, levels: list[Tensor], probabilities: Tensor) -> Tensor | None:
        """Deep features (B, D, h, w), on the head's grid or the encoder's own."""
        settings = self.settings
        if not levels:
            return None
        if settings.features == "backbone":
            return channels_first(levels[-1], self.widths[-1]).float()
        head = self.segmenter.consistency
        assert isinstance(head, ConsistencyHead)
        if settings.detach_backbone:
            levels = [level.detach() for level in levels]
        height, width = (-(-side * GRID // settings.stride) for side in probabilities.shape[-2:])
        features: Tensor = head(levels, (height, width))
        return features.float()

    def _of_pairs(self, probabilities: Tensor, features: Tensor | None, seen: ForwardPass, weight: float) -> Terms:
        """The regularised loss."""
        settings = self.settings
        beta = 0.0 if features is None else rise_after(settings.beta_start, seen.progress, settings.beta_ramp)
        size = (probabilities.shape[-2], probabilities.shape[-1])
        roi = inside(seen.batch["box"], probabilities.shape[-2:], GRID)
        found = regularized(
            probabilities,
            colours(seen.batch["image"], size),
            resized(features, size) if features is not None and beta else None,
            radius=settings.radius,
            beta=beta,
            sigma_xy=settings.sigma_xy,
            sigma_rgb=settings.sigma_rgb,
            roi=roi,
            backend=settings.backend,
            normalize=settings.normalize,
            feature_kernel=settings.kernel,
            sigma_feature=settings.sigma_feature,
            detach_features=settings.detach_features,
        )
        if not self.looked:
            self.looked = True
            warn_of_kernel(found.alike.item(), settings.sigma_rgb)
        figures = {"dfr.kernel": found.alike}
        items = found.mass if settings.normalize == "mass" else roi.sum()
        return Terms({"dfr": found.loss}, weight, items, figures, shown=True)

    def _of_features(self, features: Tensor, probabilities: Tensor, seen: ForwardPass) -> list[Terms]:
        """The consistency of features: a term for each kind of pairs, as each is a mean over other items."""
        settings = self.settings
        size = features.shape[-2:]
        labels = nearest(seen.batch["mask"], size).long()
        if seen.progress >= settings.beta_start:
            sure, best = (nearest(one, size) for one in probabilities.max(dim=1))
            answers = torch.where(sure >= settings.threshold, best, IGNORE_INDEX)
            labels = torch.where(labels == IGNORE_INDEX, answers, labels)
        roi = inside(seen.batch["box"], size, settings.stride)
        found = consistency(features, labels, settings.consistency_radius, IGNORE_INDEX, roi)
        known = ((labels != IGNORE_INDEX) & (roi[:, 0] > 0)).sum()
        figures = {
            "dfr.same_class": found.alike,
            "dfr.other_class": found.apart,
            "dfr.known": known / roi.sum().clamp(min=1),
        }
        weight, terms = settings.consistency_weight, []
        for kind, part, count in zip(KINDS, found.parts, found.counts, strict=True):
            terms.append(Terms({f"dfr.consistency_{kind}": part}, weight, count, figures, shown=True))
            figures = {}
        return terms


def colours(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W), uint8 or 0..1, pooled to the grid of this size, divided by ImageNet's deviations."""
    unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    pooled = F.avg_pool2d(unit, GRID, ceil_mode=True)[..., : size[0], : size[1]]
    return pooled / torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)


def warn_of_kernel(alike: float, sigma_rgb: float) -> None:
    """Log a warning if colours tell nothing apart, or all pixels."""
    if not is_first():
        return
    left = f"{alike:.2g} of the weights by place are left"
    if alike < LEAST_ALIKE:
        logger.warning(
            "train_seg: the regularised loss sees hardly any pixels that are alike (%s); raise dfr.sigma_rgb = %s",
            left,
            sigma_rgb,
        )
    elif alike > MOST_ALIKE:
        logger.warning(
            "train_seg: to the regularised loss all pixels look alike (%s); lower dfr.sigma_rgb = %s", left, sigma_rgb
        )
