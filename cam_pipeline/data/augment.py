"""Random training views: scale, flip, crop. A view depends on its generator alone."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cam_pipeline.ops.ignore import IGNORE_INDEX


@cache
def transforms() -> Any:
    """torchvision's functions on images and masks. They take seconds to import, and `status` needs none."""
    from torchvision.transforms.v2 import functional

    return functional


class Colors(NamedTuple):
    """How the colours of a view may change, as in `[train_cls]`; they stay as they are by default."""

    jitter: float = 0.0
    greyscale: float = 0.0
    blur: float = 0.0


AS_THEY_ARE = Colors()


class PixelMap(NamedTuple):
    """A map (H, W) or (C, H, W) uint8 that goes with an image through a view: resized by nearest neighbour, or
    bilinearly if `smooth`, and `fill` outside the image. With `channels`, its channels become these of `depth` in the
    view, where all others are 0: only those that are there are resized."""

    values: Tensor
    smooth: bool = False
    fill: int = IGNORE_INDEX
    channels: tuple[int, ...] = ()
    depth: int = 0


def random_view(
    image: Tensor,
    maps: Mapping[str, PixelMap],
    crop: int,
    scale: tuple[float, float],
    fill: tuple[int, int, int],
    rng: np.random.Generator,
    colors: Colors = AS_THEY_ARE,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Resize the longer side to U(scale) * crop, flip with probability 1/2, cut or pad to crop x crop, change colours.

    image (3, H, W) uint8 -> (3, crop, crop) uint8, padded with the colour `fill`. Every map, of the image's size,
    becomes (crop, crop) or (channels, crop, crop), by name; colours do not change it. The third result is the box of
    the view that shows the image, (4,) int64: top, left, bottom, right in pixels.
    """
    transform = transforms()
    height, width = image.shape[-2:]
    factor = rng.uniform(*scale) * crop / max(height, width)
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    image = transform.resize(image, size, antialias=True)
    flip = bool(rng.random() < 0.5)
    top, left = (int(rng.integers(min(0, side - crop), max(0, side - crop) + 1)) for side in size)
    flipped = recolored(transform.horizontal_flip(image) if flip else image, colors, rng)
    view = _window(flipped, top, left, crop, fill)
    corners = [max(-top, 0), max(-left, 0), min(size[0] - top, crop), min(size[1] - left, crop)]
    moved = {}
    for name, one in maps.items():
        whole = one.values if one.values.ndim == 3 else one.values[None]
        way = transform.InterpolationMode.BILINEAR if one.smooth else transform.InterpolationMode.NEAREST_EXACT
        whole = transform.resize(whole, size, interpolation=way, antialias=one.smooth)
        whole = transform.horizontal_flip(whole) if flip else whole
        cut = _window(whole, top, left, crop, (one.fill,)).view(*one.values.shape[:-2], crop, crop)
        moved[name] = _spread(cut, one.channels, one.depth) if one.channels else cut
    return view, moved, torch.tensor(corners)


def recolored(image: Tensor, colors: Colors, rng: np.random.Generator) -> Tensor:
    """An image (3, H, W) uint8 in other colours. What is off draws no random numbers."""
    transform = transforms()
    if colors.jitter:
        low, high = 1 - colors.jitter, 1 + colors.jitter
        image = transform.adjust_brightness(image, rng.uniform(low, high))
        image = transform.adjust_contrast(image, rng.uniform(low, high))
        image = transform.adjust_saturation(image, rng.uniform(low, high))
    if colors.greyscale and rng.random() < colors.greyscale:
        image = transform.rgb_to_grayscale(image, num_output_channels=3)
    if colors.blur and rng.random() < colors.blur:
        sigma = rng.uniform(0.1, 2.0)
        reach = min(round(3 * sigma), min(image.shape[-2:]) - 1)  # a margin is no wider than the image, less a pixel
        image = transform.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
    return image


def _spread(values: Tensor, channels: tuple[int, ...], depth: int) -> Tensor:
    """(C, H, W) as `channels` of (depth, H, W), where all others are 0."""
    spread = values.new_zeros(depth, *values.shape[1:])
    spread[list(channels)] = values
    return spread


def _window(image: Tensor, top: int, left: int, crop: int, fill: tuple[int, ...]) -> Tensor:
    """The crop x crop window of (C, H, W) at (top, left); `fill`, for each channel or for all, is outside."""
    height, width = image.shape[-2:]
    canvas = torch.tensor(fill, dtype=image.dtype)[:, None, None].repeat(len(image) // len(fill), crop, crop)
    source = image[:, max(top, 0) : max(top, 0) + crop, max(left, 0) : max(left, 0) + crop]
    row, column = max(-top, 0), max(-left, 0)
    canvas[:, row : row + min(height, crop), column : column + min(width, crop)] = source
    return canvas
