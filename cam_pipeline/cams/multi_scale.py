"""Class activation maps of images, over scales and flips.

The plain CAM is `read_maps`, `read_view` and `sources.classifier_weights`: every view goes through the classifier, its
features are weighted by class and summed, negative sums become zero, mirror images are turned back, and the views are
added. Whatever else a `CamReading` asks for stands behind an `if`, in a function of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cam_pipeline.cams.attention import spread_by_attention
from cam_pipeline.cams.classes import ClassIds, classes_before_maps, presence, shown_classes
from cam_pipeline.cams.likeness import cell_features, compare_cells
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.cams.sfc import calibrated_maps
from cam_pipeline.cams.sources import SOURCES, MapsOf
from cam_pipeline.cams.views import View, cells_of, finest_view, scaled_views
from cam_pipeline.models.attention import attention_modules, block_indices
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.levels import LevelTap, feature_levels
from cam_pipeline.ops.cam import normalize_cam, place_view
from cam_pipeline.ops.clicks import compact_features


@dataclass(frozen=True)
class Maps:
    """Maps of C classes, read from B images.

    `maps` (B, C, h, w) >= 0, not normalised; `probabilities` (B, C) in 0..1, the mean over views; `class_ids`: the
    1-based classes of every image, predicted from the probabilities if they were unknown. Calibrated maps have a
    `background` (B, h, w) >= 0 and `prototype_maps` (B, 1 + C, h, w) >= 0, background first; others have None.
    `features` (B, d, h', w'): what `keep_features` asks for, on the grid of the largest scale, or None.
    """

    maps: Tensor
    probabilities: Tensor
    class_ids: list[ClassIds]
    background: Tensor | None = None
    prototype_maps: Tensor | None = None
    features: Tensor | None = None


class ViewMaps(NamedTuple):
    """Maps of one view, placed on the common grid: `maps` (B, C, h, w) >= 0 and `probabilities` (B, C) in 0..1.

    Calibrated `maps` and `prototype_maps` are (B, 1 + C, h, w), background first. `features` (B, D, h, w): those by
    which cells are compared, in the finest view only, on that view's own grid.
    """

    maps: Tensor
    probabilities: Tensor
    prototype_maps: Tensor | None = None
    features: Tensor | None = None


@torch.inference_mode(False)  # else nothing made inside could have a gradient
@torch.no_grad()
def read_maps(
    classifier: Classifier,
    images: Tensor,
    reading: CamReading = CamReading(),  # noqa: B008 (frozen)
    class_ids: Sequence[ClassIds | None] | None = None,
) -> Maps:
    """Class maps of images (B, 3, H, W) in 0..1, whose sides are multiples of the stride.

    Maps lie on the grid of scale 1, or of the largest scale if cells are compared (ADR 8). `class_ids`: the classes of
    every image, 1-based; None for an image, or for all, if they are unknown. Gradient maps and calibrated maps are made
    for the classes of an image only (all others are zero), and only these classes protect border cells.
    """
    images = images.clone() if images.is_inference() else images
    views = scaled_views(images, classifier.stride, reading.scales, reading.flip)
    grid = cells_of(images, classifier.stride)
    finest: View | None = None
    if reading.needs_features:
        finest = finest_view(views)
    if finest is not None and reading.compares:
        grid = cells_of(finest.images, classifier.stride)
    shown: list[ClassIds] = []
    probabilities: Tensor | None = None
    if SOURCES[reading.source].needs_classes or reading.calibration is not None:
        shown, probabilities = classes_before_maps(classifier, views, class_ids, *reading.presence)

    seen = [read_view(classifier, view, reading, grid, shown, compare=view is finest) for view in views]
    maps = over_views([view.maps for view in seen], reading.flip)
    if probabilities is None:
        probabilities = torch.stack([view.probabilities for view in seen]).mean(dim=0)
    found = Maps(maps, probabilities, shown_classes(class_ids, probabilities, *reading.presence))

    if reading.calibration is not None:
        found = with_prototypes(found, seen, reading.flip)
    if reading.compares:
        found = with_cells_compared(found, seen, reading)
    if reading.keep_features:
        found = replace(found, features=compact_features(features_of(seen), reading.keep_features))
    return found


def read_view(
    classifier: Classifier,
    view: View,
    reading: CamReading,
    grid: tuple[int, int],
    class_ids: Sequence[ClassIds],
    compare: bool,
) -> ViewMaps:
    """Maps of one view, placed on `grid` (h, w), and the features by which cells are compared, if `compare`.

    `class_ids` as `cams.sources.MapsOf` takes them. The classifier works in evaluation mode and is left as it came.
    """
    if compare or reading.calibration is not None:
        return read_view_and_levels(classifier, view, reading, grid, class_ids, compare)
    with evaluating(classifier):
        raw, output = source_of(reading)(classifier, view.images, reading, class_ids)  # (B, C, h, w), of either sign
    # Negative values become zero, a mirror image is turned back, and cells go where they lie in the image (ADR 5).
    maps = place_view(raw, grid, classifier.offset, view.flipped)
    return ViewMaps(maps, output.logits.float().sigmoid())


def read_view_and_levels(
    classifier: Classifier,
    view: View,
    reading: CamReading,
    grid: tuple[int, int],
    class_ids: Sequence[ClassIds],
    compare: bool,
) -> ViewMaps:
    """As `read_view`, if features of several depths are needed: to calibrate maps, or to compare cells."""
    with evaluating(classifier), LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        raw, output = source_of(reading)(classifier, view.images, reading, class_ids)
    levels = tap.take(output.features.shape[-2:])
    features = None
    if compare:
        own_grid = cells_of(view.images, classifier.stride)
        features = cell_features(levels[-reading.levels :], own_grid, classifier.offset)
    probabilities = output.logits.float().sigmoid()
    place = partial(place_view, size=grid, offset=classifier.offset, flipped=view.flipped)
    if reading.calibration is None:
        return ViewMaps(place(raw), probabilities, features=features)
    if SOURCES[reading.source].any_magnitude:
        raw = normalize_cam(raw, eps=0.0)
    maps, prototype_maps = calibrated_maps(classifier, view.images, raw, levels, class_ids, reading.calibration)
    return ViewMaps(place(maps), probabilities, place(prototype_maps), features)


def source_of(reading: CamReading) -> MapsOf:
    """The source of raw maps, with propagation by attention if the reading has it."""
    maps_of = SOURCES[reading.source].maps_of
    if reading.attention is None:
        return maps_of
    return partial(spread_by_attention, reading.attention, maps_of)


def over_views(maps: list[Tensor], flip: bool) -> Tensor:
    """One map for all views: that of a scale is the mean with its mirror image if `flip`, and scales are added."""
    return torch.stack(maps).sum(dim=0) / (2 if flip else 1)


def with_prototypes(found: Maps, seen: Sequence[ViewMaps], flip: bool) -> Maps:
    """Calibrated maps with their background apart and the prototype maps of all views beside them."""
    prototype_maps = over_views([view.prototype_maps for view in seen if view.prototype_maps is not None], flip)
    return replace(found, maps=found.maps[:, 1:], background=found.maps[:, 0], prototype_maps=prototype_maps)


def with_cells_compared(found: Maps, seen: Sequence[ViewMaps], reading: CamReading) -> Maps:
    """Maps after the cells of the finest view were compared; backgrounds stay as they are."""
    features = features_of(seen)
    present = presence(found.class_ids, found.maps.shape[1], features.device)
    compare = partial(compare_cells, features=features, present=present, walk=reading.walk, border=reading.border)
    if found.prototype_maps is None:
        return replace(found, maps=compare(found.maps))
    background, of_classes = found.prototype_maps.tensor_split([1], dim=1)
    prototype_maps = torch.cat([background, compare(of_classes)], dim=1)
    return replace(found, maps=compare(found.maps), prototype_maps=prototype_maps)


def features_of(seen: Sequence[ViewMaps]) -> Tensor:
    """The features (B, D, h, w) by which cells are compared: those of the finest view."""
    [features] = [view.features for view in seen if view.features is not None]
    return features


def check_reading(reading: CamReading, classifier: Classifier) -> None:
    """Raise ValueError (NoAttention, NoLevels) if this classifier's maps cannot be read so."""
    if reading.calibration is not None or reading.needs_features:
        count = len(feature_levels(classifier.backbone))
        if reading.needs_features and reading.levels > count:
            raise ValueError(f"{reading.levels} stages are to be compared, but the network has {count}")
    if reading.attention is not None:
        block_indices(len(attention_modules(classifier)), reading.attention.blocks)
    SOURCES[reading.source].check(classifier, reading)
