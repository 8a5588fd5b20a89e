"""What people say about some pixels of an image: clicks, strokes and painted regions. `data.drawing` draws them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

Point = tuple[float, float]
"""x, y: pixels of the upright image from its upper left corner; pixel (0, 0) reaches from 0 to 1."""

BEYOND = 2.0
"""Pixels: a click so little beyond the edge of the image belongs to the edge. Scaled images and coordinates that start
from 1 make such."""

PSEUDO, CLICK, SCRIBBLE, MASK, CORRECTED = range(5)
"""Who says what a pixel is. CORRECTED is a mask of this program that a person has corrected."""


@dataclass(frozen=True)
class Click:
    """One pixel and its label: 0 background, 1..C. `source` says where it stands, for messages."""

    x: float
    y: float
    label: int
    source: str = field(default="", compare=False)

    def is_off(self, height: int, width: int) -> bool:
        """Whether the click lies outside an image of this size, by more than rounding explains."""
        return not (-BEYOND <= self.x <= width + BEYOND and -BEYOND <= self.y <= height + BEYOND)


@dataclass(frozen=True)
class Stroke:
    """A line through `points`, or one dot; if `filled`, the region inside the outline `points`.

    `bitmap`, if not empty, is a PNG whose upper left corner lies at the first point: all its pixels but 0 are the
    region.
    """

    label: int
    points: tuple[Point, ...]
    filled: bool = False
    bitmap: bytes = b""


@dataclass(frozen=True)
class Strokes:
    """The strokes of one image in the order in which they were drawn: a later one covers earlier ones.

    `size` (height, width) is that of the image that they were drawn on, (0, 0) if the file does not tell it. `source`
    names the file, for messages.
    """

    strokes: tuple[Stroke, ...]
    size: tuple[int, int] = (0, 0)
    source: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.source

    def digest(self) -> str:
        """Hex digest of all that changes a pixel."""
        facts = [self.size, *((stroke.label, stroke.points, stroke.filled, stroke.bitmap) for stroke in self.strokes)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


@dataclass(frozen=True)
class ScribbleXml:
    """A file of strokes that is read when it is needed: there may be thousands (see `data.scribble_xml`).

    `member` is its name in the zip file `path`, or empty. `classes` are the data set's, in label order.
    """

    path: Path
    classes: tuple[str, ...]
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)
