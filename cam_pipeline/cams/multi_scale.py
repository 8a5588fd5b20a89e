"""Read class activation maps out of a classifier, over scales and flips."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cam_pipeline.cams.classes import ClassIds, class_ranks, presence, shown_classes
from cam_pipeline.cams.likeness import cell_features, compare_cells
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.cams.sources import view_maps
from cam_pipeline.cams.views import cells_of, finest_view, scaled_views
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.levels import LevelTap
from cam_pipeline.models.sfc import Calibration, CalibrationHead
from cam_pipeline.ops.cam import normalize_cam, place_view


@torch.inference_mode(False)  # else nothing made inside could have a gradient
@torch.no_grad()
def multi_scale_cams(
    classifier: Classifier,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    reading: CamReading = CamReading(),  # noqa: B008 (frozen)
    class_ids: Sequence[ClassIds | None] | None = None,
    threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Class maps and class probabilities of a batch: images (B, 3, H, W) in 0..1, sides multiples of the stride.

    Returns (B, C, h, w) >= 0, the mean of a scale's two views summed over scales, on the grid of scale 1 and placed as
    the network's cells lie, not normalised; and (B, C) in 0..1, the mean over views. Where features are compared
    (`models.comparison`), on the grid of the largest scale. Scaled sides are rounded to whole cells, so that every grid
    covers the image exactly.

    Present classes are the 1-based `class_ids` of each image, or those predicted above `threshold` where they are None.
    Gradients are taken for them only, and the maps of the others are then zero; only they claim parts of the border.
    """
    images = images.clone() if images.is_inference() else images
    views, ranks, likely = list(scaled_views(images, classifier.stride, scales, flip)), None, None
    finest, features = finest_view(views), None
    grid = cells_of(views[finest][0] if reading.compares else images, classifier.stride)
    if reading.by_gradient:
        known, likely = _classes_before_maps(classifier, views, class_ids, threshold)
        ranks = class_ranks(known, images.device)
    maps, probabilities = [], []
    for number, (view, flipped) in enumerate(views):
        looks = reading.compares and number == finest
        tap = LevelTap(classifier.backbone, classifier.prefix_tokens) if looks else None
        with tap or nullcontext():
            raw, output = view_maps(classifier, view, reading, ranks)
        if tap is not None:
            features = cell_features(tap.take(grid)[-reading.levels :], grid, classifier.offset)
        maps.append(place_view(raw, grid, classifier.offset, flipped))
        probabilities.append(output.logits.float().sigmoid())
    chances = torch.stack(probabilities).mean(dim=0) if likely is None else likely  # those that chose the classes
    merged = torch.stack(maps).sum(dim=0) / (2 if flip else 1)
    if features is None:
        return merged, chances
    shown = shown_classes(class_ids, chances, threshold)
    present = presence(shown, classifier.head.out_features, images.device)
    return compare_cells(merged, features, present, reading.walk, reading.border), chances


@torch.inference_mode(False)
@torch.no_grad()
def calibrated_cams(
    classifier: Classifier,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    reading: CamReading,
    class_ids: Sequence[ClassIds | None] | None = None,
    threshold: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classifier maps and prototype maps with background, and class probabilities; arguments as `multi_scale_cams`.

    Returns (B, 1 + C, h, w) >= 0 twice, background first, summed over scales as there, and (B, C). The maps of absent
    classes are zero and have no say in the background or the prototypes. The side features are those that the
    classifier learned (objective SFC), else its stages' own. A walk spreads the calibrated maps of the classes, and
    the border takes from them; the backgrounds stay. Source: SFC (AAAI 2024), specification section 6, but every view
    is calibrated by itself, so that its cells need not coincide with those of the mirrored one.
    """
    calibration = reading.calibration or Calibration()
    images = images.clone() if images.is_inference() else images
    views = list(scaled_views(images, classifier.stride, scales, flip))
    finest, compared = finest_view(views), None
    grid = cells_of(views[finest][0] if reading.compares else images, classifier.stride)
    known, likely = _classes_before_maps(classifier, views, class_ids, threshold)
    present = presence(known, classifier.head.out_features, images.device)
    ranks = class_ranks(known, images.device)
    head = classifier.calibration or CalibrationHead()
    owns, prototypes, probabilities = [], [], []
    for number, (view, flipped) in enumerate(views):
        with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
            raw, (features, logits) = view_maps(classifier, view, reading, ranks)
        levels = tap.take(features.shape[-2:])
        if reading.compares and number == finest:
            compared = cell_features(levels[-reading.levels :], grid, classifier.offset)
        if reading.by_gradient:
            raw = normalize_cam(raw, eps=0.0)  # gradients may be that small
        own = head.classifier_maps(raw, classifier.normalize(view), levels[-1], present, calibration)
        prototype = head.prototype_maps(own, levels, present, calibration)
        owns.append(place_view(own, grid, classifier.offset, flipped))
        prototypes.append(place_view(prototype, grid, classifier.offset, flipped))
        probabilities.append(logits.float().sigmoid())
    chances = torch.stack(probabilities).mean(dim=0) if likely is None else likely
    own, prototype = (torch.stack(kind).sum(dim=0) / (2 if flip else 1) for kind in (owns, prototypes))
    if compared is None:
        return own, prototype, chances
    for maps in (own, prototype):
        maps[:, 1:] = compare_cells(maps[:, 1:], compared, present, reading.walk, reading.border)
    return own, prototype, chances


def _classes_before_maps(
    classifier: Classifier,
    views: Sequence[tuple[Tensor, bool]],
    class_ids: Sequence[ClassIds | None] | None,
    threshold: float,
) -> tuple[list[ClassIds], Tensor | None]:
    """The classes of every image, predicted where unknown, and the probabilities (B, C) that took; None: all known."""
    if class_ids is not None and None not in class_ids:
        return [ids or () for ids in class_ids], None
    with evaluating(classifier):
        likely = torch.stack([classifier(view).logits.float().sigmoid() for view, _ in views]).mean(dim=0)
    return shown_classes(class_ids, likely, threshold), likely
