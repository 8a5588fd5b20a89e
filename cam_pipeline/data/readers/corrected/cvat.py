"""CVAT for images, XML 1.1: masks and polygons, the file itself or the zip file that CVAT exports."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import Patch, Patches
from cam_pipeline.data.readers.corrected.names import label_named
from cam_pipeline.data.xml_files import parsed_xml
from cam_pipeline.data.zips import is_zip, xml_members
from cam_pipeline.errors import DataError


def read_cvat(path: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, Patches]]:
    """The images of all files; of two shapes the one of the higher `z_order` lies on top, else the later.

    An image without a shape is background. Boxes, points and lines are left out with a warning. Raises DataError if a
    file cannot be read, or holds no annotations of images.
    """
    for where, content in _files(path):
        tree = parsed_xml(content, where)
        if tree.tag != "annotations" or (tree.find("image") is None and tree.find("track") is not None):
            raise DataError(f"{where}: no annotations of images; export it from CVAT as 'CVAT for images 1.1'")
        for image in tree.iter("image"):
            name = image.get("name", "")
            place = f"{where}, image {name}"
            try:
                size = int(image.get("height", "0")), int(image.get("width", "0"))
            except ValueError:
                raise DataError(f"{place}: width and height are no whole numbers; export it again") from None
            shapes = sorted(_shapes(image, classes, place, problems), key=lambda shape: shape[0])
            yield name, Patches(tuple(patch for _, patch in shapes), size, source=place)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The XML files that a path stands for, each with what names it in messages."""
    try:
        if not is_zip(path):
            yield str(path), path.read_bytes()
            return
        members = sorted(set(xml_members(path).values()))
        with zipfile.ZipFile(path) as archive:
            for member in members:
                yield f"{path}/{member}", archive.read(member)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path} cannot be read ({error}); export it again") from error


def _shapes(image: Any, classes: Sequence[str], place: str, problems: Problems) -> Iterator[tuple[int, Patch]]:
    for number, shape in enumerate((one for one in image if one.tag != "tag"), 1):
        where = f"{place}, shape {number}"
        if shape.tag not in ("mask", "polygon"):
            problems.warn("shape that is left out", f"{where}: a {shape.tag} is no region; draw a mask or a polygon")
            continue
        try:
            label = label_named(shape.get("label", ""), classes, where)
            yield int(shape.get("z_order") or 0), _mask(shape, label) if shape.tag == "mask" else _outline(shape, label)
        except DataError as error:
            problems.report("unknown class", str(error))
        except (TypeError, ValueError, OverflowError) as error:
            message = f"{where}: the {shape.tag} cannot be read ({error}); draw it again, or delete it"
            problems.report("shape that cannot be used", message)


def _mask(shape: Any, label: int) -> Patch:
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    left, top, width, height = (int(float(shape.get(key, ""))) for key in ("left", "top", "width", "height"))
    if min(runs) < 0 or min(width, height) < 1 or sum(runs) != width * height:
        raise ValueError("its run lengths do not fill its box")
    return Patch(label, runs=np.array(runs, np.uint32).tobytes(), box=(left, top, width, height))


def _outline(shape: Any, label: int) -> Patch:
    points = [float(number) for point in shape.get("points", "").split(";") for number in point.split(",")]
    if len(points) < 6 or len(points) % 2 or not all(map(math.isfinite, points)):
        raise ValueError("a polygon has three points or more, as x,y;x,y")
    return Patch(label, polygon=np.array(points, np.float64).tobytes())
