"""ScribbleSup's XML: for each image a file of strokes, alone or in a zip file.

    <annotation>
      <size><width>500</width><height>375</height></size>
      <polygon><tag>background</tag><point><X>12</X><Y>30</Y></point> ...</polygon>
    </annotation>

A `polygon` is a line through its points, neither closed nor filled. Class names are VOC's, short or long.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

from cam_pipeline.data.drawing import WIDTH, UInt8, draw_strokes
from cam_pipeline.data.names import clean, is_background, label_of
from cam_pipeline.data.strokes import Point, ScribbleXml, Stroke, Strokes
from cam_pipeline.data.table import unknown_class
from cam_pipeline.data.xml_files import parsed_xml
from cam_pipeline.data.zips import split_path
from cam_pipeline.errors import DataError

LARGEST = 16 * 2**20
"""Bytes of a file in a zip: real ones have some kilobytes, and a small zip can unpack to anything."""


def read_scribble_xml(
    path: str | os.PathLike[str], classes: Sequence[str], size: tuple[int, int], width: int = WIDTH
) -> UInt8:
    """The strokes of an XML file as labels (height, width) uint8: 0 background, 1..C, 255 where nobody has drawn.

    `path` may lead into a zip file (`scribbles.zip/2007_000032.xml`). `classes` are in label order, without background
    or after it. `size` is (height, width) of the upright image, `width` that of the strokes in pixels. Coordinates
    start from 0; those off the image are moved to its edge. The last stroke wins. Raises DataError if the file cannot
    be read, names an unknown class, or tells another size.
    """
    file, member = split_path(Path(path))
    names = tuple(classes[1:] if classes and is_background(classes[0]) else classes)
    strokes = read_strokes(ScribbleXml(file, names, member))
    if strokes.size not in ((0, 0), tuple(size)):
        raise DataError(
            f"{strokes}: the scribble is for an image of {strokes.size}, its image is {tuple(size)} (height, width); "
            "draw it again, or replace the image"
        )
    return draw_strokes(strokes.strokes, *size, line_width=width)[0]


def read_strokes(file: ScribbleXml) -> Strokes:
    """The strokes in a file. Raises DataError as `read_scribble_xml`."""
    content = _member(file) if file.member else _content(file.path)
    root = parsed_xml(content, str(file))
    polygons = root.findall("polygon")
    if root.tag != "annotation" or (not polygons and root.find("object") is not None):
        raise DataError(
            f"{file}: not a scribble, which is an <annotation> of <polygon>s with a <tag> and <point>s each"
        )
    strokes = [_stroke(polygon, f"{file}, polygon {number}", file) for number, polygon in enumerate(polygons, 1)]
    return Strokes(tuple(strokes), _size(root), str(file))


def _stroke(polygon: Any, where: str, file: ScribbleXml) -> Stroke:
    tags = [clean(tag.text or "") for tag in polygon.findall("tag")]
    if len(tags) != 1:
        raise DataError(f"{where}: it has {len(tags)} <tag>s and needs one, the name of its class")
    label = label_of(tags[0], file.classes)
    if label is None:
        raise DataError(f"{where}: {unknown_class(tags[0], file.classes)}")
    points = tuple(
        _point(point, f"{where}, point {number}") for number, point in enumerate(polygon.findall("point"), 1)
    )
    if not points:
        raise DataError(f"{where}: it has no <point>; delete it, or draw it again")
    return Stroke(label, points)


def _point(point: Any, where: str) -> Point:
    try:
        x, y = (float(point.findtext(name) or point.findtext(name.lower()) or "") for name in ("X", "Y"))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise DataError(f"{where}: its <X> and <Y> are no numbers of pixels; correct them, or delete the point")
    return x, y


def _size(root: Any) -> tuple[int, int]:
    """(height, width), or (0, 0) if the file does not tell them."""
    try:
        height, width = (int(float(root.findtext(f"size/{name}") or 0)) for name in ("height", "width"))
    except (ValueError, OverflowError):
        return 0, 0
    return (height, width) if height > 0 and width > 0 else (0, 0)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); restore it, or take it out of the data set"
        ) from error


def _member(file: ScribbleXml) -> bytes:
    """The content of a file in a zip."""
    try:
        state = file.path.stat()
        archive = _archive(file.path, state.st_size, state.st_mtime_ns, os.getpid())
        size = archive.getinfo(file.member).file_size
        if size > LARGEST:
            raise DataError(f"{file} unpacks to {size:,} bytes, which is no scribble; take it out")
        return archive.read(file.member)
    except KeyError:
        raise DataError(f"there is no file {file.member} in {file.path}; add it, or correct the name") from None
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ZlibError) as error:
        raise DataError(f"{file} cannot be read ({error}); make the zip file again, without a password") from error


@lru_cache(maxsize=2)
def _archive(path: Path, _size: int, _mtime_ns: int, _process: int) -> zipfile.ZipFile:
    """An open zip file. Each process has its own, as those that share one would move one another's place in it."""
    return zipfile.ZipFile(path)
