"""Gradient accumulation: a batch is seen in parts, one after the other, whose losses add up to that of the batch."""

from typing import NamedTuple

from cam_pipeline.machine.distributed import exchange
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.training.objectives.base import Batch


class Part(NamedTuple):
    """A part of a batch, and its shares of the whole batch of all processes: of the images, of the labelled pixels."""

    batch: Batch
    images: float = 1.0
    pixels: float = 1.0


def divided(batch: Batch, count: int) -> list[Part]:
    """The batch in `count` equal parts, in order. Its images can be divided by `count`.

    Every process asks for as many parts. Batches without a mask, and without a labelled pixel, are shared by images.
    """
    if count == 1:
        return [Part(batch)]
    size = len(batch["index"]) // count
    batches = [{key: value[n * size : (n + 1) * size] for key, value in batch.items()} for n in range(count)]
    pixels = [0.0] * count
    if "mask" in batch:
        own = [float((one["mask"] != IGNORE_INDEX).sum()) for one in batches]
        pixels = [sum(column) for column in zip(*exchange(*own), strict=True)]
    total = sum(pixels)
    shares = [each / total if total else 1 / count for each in pixels]
    return [Part(one, 1 / count, share) for one, share in zip(batches, shares, strict=True)]
