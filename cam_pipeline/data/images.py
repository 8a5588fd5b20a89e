"""Decode image and mask files; bring images to the sizes that networks see."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

UInt8 = NDArray[np.uint8]
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, a file of another kind, and an image of absurd size."""


def read_image(path: Path) -> UInt8:
    """Decode an image file to (height, width, 3) uint8 RGB, turned upright by its EXIF tag.

    Raises DataError, naming the file, when it is missing, cut short, no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these at 255
                raise DataError(f"{path}: channels of more than 8 bits (mode {image.mode}); convert it to 8 bits")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"there is no image file {path}") from None
    except UNREADABLE as error:
        raise DataError(
            f"{path} can not be read as an image ({error}); replace it, or take it out of the data set"
        ) from error


def read_mask(path: Path, num_classes: int) -> UInt8:
    """Decode an indexed or greyscale PNG to (height, width) uint8 labels: 0 background, 1..num_classes, 255 ignore.

    Raises DataError when the file can not be read, is a colour image, or holds another value.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise DataError(f"{path}: a mask must be an indexed or greyscale PNG, this one has mode {image.mode}")
            mask = np.asarray(image, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"there is no mask file {path}") from None
    except UNREADABLE as error:
        raise DataError(f"{path} can not be read as a mask ({error})") from error
    wrong = set(np.unique(mask).tolist()) - {*range(num_classes + 1), 255}
    if wrong:
        raise DataError(f"{path}: mask value {min(wrong)} is neither 0..{num_classes} nor 255 (ignore)")
    return mask


def sample_mask(sample: Sample, num_classes: int) -> UInt8:
    """The mask of a sample, see `read_mask`. Raises DataError also when there is none or its size is another."""
    if sample.mask is None:
        raise DataError(f"image {sample.id} has no mask")
    mask, size = read_mask(sample.mask, num_classes), image_size(sample.image)
    if mask.shape != size:
        raise DataError(f"{sample.mask}: the mask is {mask.shape}, its image is {size} (height, width)")
    return mask


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `read_image` would return, without decoding. Raises DataError like it."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5..8 swap the sides
            width, height = image.size
    except FileNotFoundError:
        raise DataError(f"there is no image file {path}") from None
    except UNREADABLE as error:
        raise DataError(
            f"{path} can not be read as an image ({error}); replace it, or take it out of the data set"
        ) from error
    return (width, height) if turned else (height, width)


def to_tensor(image: UInt8) -> Tensor:
    """(height, width, 3) uint8 -> (3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def grid_size(height: int, width: int, stride: int, max_side: int, scale: float = 1.0) -> tuple[int, int]:
    """(rows, columns) of feature cells for an image seen at `scale`: sides are rounded to whole cells, at least one.

    The network sees the image resized to exactly rows x columns cells, so that the grid covers all of the image,
    and images of nearly the same size share a batch. Images longer than `max_side` pixels are reduced to it first.
    """
    factor = scale * min(1.0, max_side / max(height, width)) / stride
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize_to_grid(image: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """(3, H, W) uint8 -> (3, rows * stride, columns * stride) float32 in 0..1, antialiased bilinear."""
    size = (grid[0] * stride, grid[1] * stride)
    unit = image[None].float() / 255
    return F.interpolate(unit, size, mode="bilinear", align_corners=False, antialias=True)[0]
