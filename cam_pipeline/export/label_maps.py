"""Labels of a run as files that labelling tools read; `data.corrected` reads all of them back."""

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cam_pipeline.data.images import UInt8
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import UserError
from cam_pipeline.machine.atomic import write_errors_named

IGNORED = "__ignore__"
"""The class name of undecided pixels."""


@dataclass(frozen=True)
class LabelMap:
    """The labels (H, W) uint8 of an upright image: 0 background, 1..C, 255 undecided.

    `name` is the path of the image file below the data root, with `/`; `id` is the sample's.
    """

    id: str
    name: str
    image: Path
    labels: UInt8


Writer = Callable[[Iterable[LabelMap], Sequence[str], Path, Path], int]
"""Writes label maps of classes (without background) into a folder, to be renamed to the last; gives their number."""


def label_map(sample: Sample, labels: UInt8, root: Path) -> LabelMap:
    """The labels of a sample whose data set lies at `root`."""
    inside = sample.image.is_relative_to(root)
    name = sample.image.relative_to(root).as_posix() if inside else sample.image.name
    return LabelMap(sample.id, name, sample.image, labels)


def write_label_maps(write: Writer, maps: Iterable[LabelMap], classes: Sequence[str], folder: Path) -> int:
    """Write label maps into a new folder, which appears when all are there; gives their number.

    Raises UserError for a folder that holds something, as it may be a person's work, and CannotWrite.
    """
    with write_errors_named(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty, and what people have corrected in it would be lost; name another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
        aside.mkdir()
        try:
            count = write(maps, classes, aside, folder)
            if folder.exists():
                folder.rmdir()
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return count


def regions_of(labels: UInt8) -> Iterator[int]:
    """The labels that a map (H, W) shows beside the background, in order; 255 comes last."""
    present = sorted(set(labels.ravel().tolist()))
    yield from (label for label in present if label)


def in_box(region: Any) -> tuple[int, int, Any]:
    """Left and top of the box around a region (H, W) that is not empty, and the region (h, w) in it."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, region[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
