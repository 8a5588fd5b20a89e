"""Whole label maps that people have corrected in another tool; `data.corrected` reads them and draws them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.ops.ignore import IGNORE_INDEX


@dataclass(frozen=True)
class NumberedMask:
    """A mask file. `labels` are those of the numbers 0, 1, 2 ... in it; empty: the numbers are labels themselves."""

    path: Path
    labels: tuple[int, ...] = ()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Patch:
    """A region of one label: the inside of a polygon, or runs along the rows of a box.

    `polygon` is float64 x, y, x, y ... in pixels, packed; `runs` are uint32 lengths of runs outside and inside, packed,
    that fill `box` (left, top, width, height).
    """

    label: int
    polygon: bytes = b""
    runs: bytes = b""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Patches:
    """The patches of one image on background; a later one covers earlier ones.

    `size` (height, width) is that of the image that they were drawn on, (0, 0) if the file does not tell it. With
    `shares` polygons are in shares of width and height. `source` names file and image, for messages.
    """

    patches: tuple[Patch, ...]
    size: tuple[int, int] = (0, 0)
    shares: bool = False
    source: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.source

    def digest(self) -> str:
        """Hex digest of all that changes a pixel."""
        total = hashlib.sha256(repr((self.size, self.shares)).encode())
        for patch in self.patches:
            total.update(repr((patch.label, len(patch.polygon), len(patch.runs), patch.box)).encode())
            total.update(patch.polygon + patch.runs)
        return total.hexdigest()


Correction = NumberedMask | Patches | CocoMask


def labels_in(correction: Patches | CocoMask) -> set[int]:
    """The labels that regions have, 0 and 255 among them if they do; no pixel is looked at."""
    if isinstance(correction, Patches):
        return {patch.label for patch in correction.patches}
    return {IGNORE_INDEX if region.crowd else region.label for region in correction.regions}
