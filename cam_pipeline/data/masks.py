"""Masks: pixel labels from files and from COCO outlines."""

from pathlib import Path

import numpy as np

from cam_pipeline.data.coco_masks import CocoMask, draw
from cam_pipeline.data.images import UInt8, errors_named_for, is_turned, opened, sample_size
from cam_pipeline.data.table import MAX_PIXELS, Sample
from cam_pipeline.errors import DataError


def read_mask(path: Path, num_classes: int, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Decode an indexed or greyscale PNG to (height, width) uint8 labels: 0 background, 1..num_classes, 255 ignore.

    Raises DataError if the file cannot be read, is a colour image, or holds another value.
    """
    with opened(path, max_pixels, "mask") as image:
        if image.mode not in ("P", "L"):
            raise DataError(
                f"{path}: a mask must be an indexed or greyscale PNG, this one has mode {image.mode}; "
                "save class numbers in place of colours"
            )
        mask = np.asarray(image, dtype=np.uint8)
    wrong = set(np.unique(mask).tolist()) - {*range(num_classes + 1), 255}
    if wrong:
        raise DataError(
            f"{path}: mask value {min(wrong)} is neither 0..{num_classes} nor 255 (ignore); "
            "write class numbers into the mask, or add the class to data.classes"
        )
    return mask


def sample_mask(sample: Sample, num_classes: int) -> UInt8:
    """The mask of a sample, see `read_mask`. Raises DataError also if there is none, or its size is not the image's."""
    if sample.mask is None:
        raise DataError(f"image {sample.id} has no mask{sample.named_in}; add one, or take the image out of the split")
    if isinstance(sample.mask, CocoMask):
        _check_size(sample, (sample.mask.height, sample.mask.width))  # first: a wrong size could fill the memory
        return draw(sample.mask)
    with errors_named_for(sample):
        mask = read_mask(sample.mask, num_classes, sample.max_pixels)
        _check_size(sample, mask.shape)
    return mask


def _check_size(sample: Sample, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the mask has the size of its image."""
    size = sample_size(sample)
    if shape != size:
        remedy = "correct height and width of the entry" if isinstance(sample.mask, CocoMask) else "make the mask again"
        turned = "; EXIF turns the image upright, so its mask must be upright, too" * is_turned(sample)
        raise DataError(
            f"{sample.mask}: the mask is {shape}, its image is {size} (height, width){turned}; "
            f"{remedy}, or replace the image"
        )
