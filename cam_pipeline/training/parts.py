"""Gradient accumulation: a batch is seen in parts, one after the other, whose losses add up to that of the batch."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from cam_pipeline.machine.distributed import exchange
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.training.objectives.base import Batch


class Part(NamedTuple):
    """A part of a batch, and its shares of the whole batch of all processes: of the images, of the labelled pixels, and
    of the pixels that show an image."""

    batch: Batch
    images: float = 1.0
    pixels: float = 1.0
    shown: float = 1.0


def divided(batch: Batch, count: int) -> list[Part]:
    """The batch in `count` equal parts, in order. Its images can be divided by `count`.

    Every process asks for as many parts. Batches without a mask, without a labelled pixel, or without boxes are shared
    by images.
    """
    if count == 1:
        return [Part(batch)]
    size = len(batch["index"]) // count
    batches = [{key: value[n * size : (n + 1) * size] for key, value in batch.items()} for n in range(count)]
    pixels = shares([float((one["mask"] != IGNORE_INDEX).sum()) if "mask" in one else 0.0 for one in batches])
    shown = shares([shown_pixels(one["box"]) if "box" in one else 0.0 for one in batches])
    return [Part(*part) for part in zip(batches, [1 / count] * count, pixels, shown, strict=True)]


def shares(counts: Sequence[float]) -> list[float]:
    """The share of each part in the counts of all processes; equal shares of nothing."""
    of_all = [sum(column) for column in zip(*exchange(*counts), strict=True)]
    total = sum(of_all)
    return [each / total if total else 1 / len(counts) for each in of_all]


def shown_pixels(boxes: Tensor) -> float:
    """How many pixels lie in boxes (B, 4), top, left, bottom, right."""
    top, left, bottom, right = boxes.unbind(dim=1)
    return float(((bottom - top) * (right - left)).sum())
