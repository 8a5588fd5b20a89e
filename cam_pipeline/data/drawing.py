"""Draw clicks and strokes into labels."""

import io
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cam_pipeline.data.strokes import CLICK, MASK, PSEUDO, SCRIBBLE, Click, Stroke
from cam_pipeline.ops.ignore import IGNORE_INDEX

UInt8 = NDArray[np.uint8]

WIDTH = 3
"""Pixels: the width of a stroke, as ScribbleSup's strokes are drawn in most published work."""
CLICK_RADIUS = 2
"""Pixels around a click that take its class. On photographs of 320 pixels (PASCAL VOC; clicks of people on objects,
without the undecided border) 97.3 % of the exact pixels are right, 97.0 % of those within 2, and 96.4 % within 4."""

FARTHEST = 1_000_000
"""Pixels: a corner of a bitmap farther away than this lies off every image, and Pillow takes no larger numbers."""


def draw_strokes(strokes: Iterable[Stroke], height: int, width: int, line_width: int = WIDTH) -> tuple[UInt8, UInt8]:
    """Labels and origins (height, width) of strokes: 255 and PSEUDO where there is none; the last one wins.

    Points off the image are moved to its edge. A line has a disc of its width at each point, so a single point is a
    dot. Regions have the origin MASK, lines SCRIBBLE.
    """
    labels = Image.new("L", (width, height), IGNORE_INDEX)
    origins = Image.new("L", (width, height), PSEUDO)
    for stroke in strokes:
        points = [_pixel(x, y, height, width) for x, y in stroke.points]
        for image, value in ((labels, stroke.label), (origins, MASK if stroke.filled else SCRIBBLE)):
            if stroke.bitmap:
                _paste(image, stroke, value)
            else:
                _draw(ImageDraw.Draw(image), points, stroke.filled, value, line_width)
    return np.array(labels), np.array(origins)


def _draw(canvas: ImageDraw.ImageDraw, points: list[tuple[int, int]], filled: bool, value: int, width: int) -> None:
    if filled and len(points) > 2:
        canvas.polygon(points, fill=value, outline=value)
        return
    if len(points) > 1:
        canvas.line(points, fill=value, width=width)
    before, after = (width - 1) // 2, width // 2
    for x, y in points:
        if width > 1:
            canvas.ellipse((x - before, y - before, x + after, y + after), fill=value)
        canvas.point((x, y), fill=value)


def _paste(canvas: Image.Image, stroke: Stroke, value: int) -> None:
    x, y = (math.floor(min(max(place, -FARTHEST), FARTHEST)) for place in stroke.points[0])
    with Image.open(io.BytesIO(stroke.bitmap)) as bitmap:
        region = Image.fromarray(np.asarray(bitmap.convert("L")) > 0)
    canvas.paste(value, (x, y), region)


def draw_clicks(clicks: Iterable[Click], labels: UInt8, origins: UInt8, radius: int = CLICK_RADIUS) -> None:
    """Write a disc of each click into labels and origins (height, width), those off the image left out.

    Of clicks that overlap the last wins, but each keeps its own pixel.
    """
    height, width = labels.shape
    inside = [click for click in clicks if not click.is_off(height, width)]
    for reach in (radius, 0):
        for click in inside:
            x, y = _pixel(click.x, click.y, height, width)
            rows = np.arange(max(y - reach, 0), min(y + reach + 1, height))[:, None]
            columns = np.arange(max(x - reach, 0), min(x + reach + 1, width))
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= reach**2
            place = np.s_[rows[0, 0] : rows[-1, 0] + 1, columns[0] : columns[-1] + 1]
            labels[place][disc] = click.label
            origins[place][disc] = CLICK


def _pixel(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """Column and row of the pixel at x, y, or of the nearest one at the edge."""
    return int(min(max(x, 0), width - 1)), int(min(max(y, 0), height - 1))
