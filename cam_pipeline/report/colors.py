"""Colours of classes that can be told from one another, and from a grey picture below them."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from cam_pipeline.ops.ignore import IGNORE_INDEX

Color = tuple[int, int, int]
Floats = NDArray[np.floating]

IGNORE_COLOR = (224, 224, 224)

LABEL_OPACITY = 0.65
"""Share of the class colour within a label region; the rest is the grey copy of the image."""

PALE_GREY = 204
"""A grey in the middle of those that the faded copy of an image has."""

LEVELS = 17
"""Levels of red, green and blue among which colours are sought."""
LIGHTEST, DARKEST = 95, 20
"""Lightness (CIELAB) outside of which a colour is taken for paper or ink."""
FROM_GREY = 15
"""Least distance (CIEDE2000) of a tint from every grey; about 2 is just noticeable."""

COUNTS = (20, 80, IGNORE_INDEX - 1)
"""Numbers of colours that are looked for at once: PASCAL VOC, COCO, all."""


def class_color(index: int) -> Color:
    """Colour of a label, as RGB in 0..255: 0 (background) is black, 255 (ignore) light grey, the others differ.

    They do so as they are and as tints over grey; the first classes do most. Raises ValueError outside 0..255.
    """
    if not 0 <= index <= 255:
        raise ValueError(f"a label must lie in 0..255, but is {index}")
    if index == IGNORE_INDEX:
        return IGNORE_COLOR
    if index == 0:
        return 0, 0, 0
    red, green, blue = _palette(min(count for count in COUNTS if count >= index))[index - 1]
    return red, green, blue


def tint(colors: Floats, grey: float) -> Floats:
    """Colours (..., 3) in 0..255 as they look over a grey: what is drawn in a label region."""
    return LABEL_OPACITY * colors + (1 - LABEL_OPACITY) * grey


@cache
def _palette(count: int) -> list[list[int]]:
    """The first `count` colours: each is the one farthest from all before it and from all greys (CIEDE2000).

    The distance of two colours is the smaller of that of the colours themselves and that of their tints. A longer
    palette begins with the shorter ones.
    """
    levels = np.linspace(0, 255, LEVELS).round()
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = _lab(colors)[:, 0]
    colors = colors[(lightness > DARKEST) & (lightness < LIGHTEST)]
    colors = colors[_from_grey(_lab(tint(colors, PALE_GREY))) >= FROM_GREY]
    looks = _lab(colors), _lab(tint(colors, PALE_GREY))
    distance = np.minimum(*map(_from_grey, looks))
    chosen = []
    for _ in range(count):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        for look in looks:
            distance = np.minimum(distance, deltaE_ciede2000(look, look[farthest][None]))
    return [[int(level) for level in color] for color in colors[chosen]]


def _lab(colors: Floats) -> Floats:
    """RGB in 0..255 to CIELAB, (n, 3) both."""
    lab: Floats = rgb2lab(colors / 255)
    return lab


def _from_grey(lab: Floats) -> Floats:
    """Distance (n,) of colours (n, 3) from the grey that is nearest to each."""
    greys = _lab(np.repeat(np.arange(0, 256, 8.0)[:, None], 3, axis=1))
    distance: Floats = deltaE_ciede2000(lab[:, None], greys[None]).min(axis=1)
    return distance
