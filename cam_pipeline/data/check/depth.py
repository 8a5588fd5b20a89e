"""Images that use little of their range: numbers of 8, 10 or 12 bits in 16, or 0..1 in 8, were stored as they are."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cam_pipeline.data.images import Picture, opened, sample_picture, stored_as
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

logger = logging.getLogger(__name__)

WHITE = {16: (255, 1023, 4095), 8: (1, 15)}
"""What white was before an image was stored in so many bits without being stretched, if it looks black now."""
LOOKED_AT = 16
"""Images that are looked at before a training."""


class Brightest(NamedTuple):
    """The greatest number in an image, and the bits of a channel."""

    number: int
    bits: int

    @property
    def is_dark(self) -> bool:
        """Whether less than 1/16 of the range is used. An image that is all black is meant to be."""
        return 0 < self.number < (1 << self.bits) // 16


def brightest_of(picture: Picture) -> Brightest:
    """The greatest number in an image."""
    if picture.brightest is not None:
        return Brightest(picture.brightest, 16)
    return Brightest(int(picture.pixels.max()), 8)


def told_of_dark(known: Sequence[tuple[Sample, Brightest]]) -> Iterator[str]:
    """A line about the dark images of each depth."""
    for bits, whites in WHITE.items():
        of_depth = [(sample, found) for sample, found in known if found.bits == bits]
        dark = [(sample, found.number) for sample, found in of_depth if found.is_dark]
        if dark:
            sample, number = max(dark, key=lambda one: one[1])
            white = next(white for white in whites if number <= white)
            factor = 255 // white if bits == 8 else (1 << bits) // (white + 1)
            yield (
                f"{len(dark)} of {len(of_depth)} images of {bits} bits use less than 1/16 of their range, so they look "
                f"black; the greatest number is {number}, in {sample.image}; if it should be {white} for white, "
                f"multiply all by {factor}"
            )


def warn_of_dark(samples: Sequence[Sample]) -> None:
    """Log if images look black: of a few, evenly spread, decodes those that have 16 bits."""
    places = np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int)
    found = []
    for sample in (samples[place] for place in places):
        try:
            with opened(sample.image, sample.max_pixels) as image:
                deep = "16" in stored_as(image) or image.mode.startswith("I")
            if deep:
                found.append((sample, brightest_of(sample_picture(sample))))
        except DataError:
            continue  # training reports it, if it takes this image
    for message in told_of_dark(found):
        logger.warning("%s", message)
