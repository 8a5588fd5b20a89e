"""The pixels of a correction."""

import numpy as np

from cam_pipeline.data.coco_masks import Region, draw, inside, of_size
from cam_pipeline.data.corrections import NumberedMask, Patch, Patches
from cam_pipeline.data.images import UInt8, errors_named_for, is_turned, sample_size
from cam_pipeline.data.masks import read_mask
from cam_pipeline.data.runs import filled_runs
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX


def corrected_labels(sample: Sample, num_classes: int) -> UInt8:
    """The labels (height, width) of a corrected sample: 0 background, 1..num_classes, 255 where it says nothing.

    Raises DataError if the file cannot be read, or was made for an image of another size.
    """
    correction = sample.corrected
    assert correction is not None
    size = sample_size(sample)
    if isinstance(correction, NumberedMask):
        with errors_named_for(sample):
            labels = numbered_labels(correction, num_classes, sample)
        _check_size(sample, labels.shape, size)
        return labels
    given = correction.size if isinstance(correction, Patches) else (correction.height, correction.width)
    if given != (0, 0):
        _check_size(sample, given, size)
    if isinstance(correction, Patches):
        return draw_patches(correction, *size)
    try:
        return draw(correction if given != (0, 0) else of_size(correction, *size))
    except ValueError as error:
        raise DataError(f"{correction}: {error}; correct the outline, or replace the image") from error


def numbered_labels(correction: NumberedMask, num_classes: int, sample: Sample) -> UInt8:
    """The labels in a mask file. Raises DataError for a number without a label, and as `masks.read_mask`."""
    if not correction.labels:
        return read_mask(correction.path, num_classes, sample.max_pixels, sample.colors).copy()
    numbers = read_mask(correction.path, len(correction.labels) - 1, sample.max_pixels)
    labels_of = np.full(256, IGNORE_INDEX, np.uint8)
    labels_of[: len(correction.labels)] = correction.labels
    labels: UInt8 = labels_of[numbers]
    return labels


def draw_patches(correction: Patches, height: int, width: int) -> UInt8:
    """The labels (height, width) of patches; what lies off the image is left out."""
    labels = np.zeros((height, width), np.uint8)
    for patch in correction.patches:
        if patch.polygon:
            points = np.frombuffer(patch.polygon)
            points = points * np.tile([width, height], len(points) // 2) if correction.shares else points
            labels[inside(Region(patch.label, False, (points.tobytes(),)), height, width)] = patch.label
        else:
            _fill_box(labels, patch)
    return labels


def _fill_box(labels: UInt8, patch: Patch) -> None:
    left, top, width, height = patch.box
    region = filled_runs(np.frombuffer(patch.runs, np.uint32)).reshape(height, width)
    rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
    target = labels[rows, columns]
    above, before = max(-top, 0), max(-left, 0)
    target[region[above : above + target.shape[0], before : before + target.shape[1]]] = patch.label


def _check_size(sample: Sample, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if shape != size:
        turned = "; EXIF turns the image upright, so its correction must be upright, too" * is_turned(sample)
        raise DataError(
            f"{sample.corrected}: the correction is for an image of {shape}, image {sample.id} is {size} (height, "
            f"width){turned}; export the labels and correct them again, or replace the image{sample.named_in}"
        )
