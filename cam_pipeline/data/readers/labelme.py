"""Labelme's JSON: for each image a file of shapes. Points are clicks, lines are strokes, polygons and masks regions."""

import base64
import binascii
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cam_pipeline.config.mistakes import shown
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import clean, is_ignored, label_of
from cam_pipeline.data.strokes import Click, Point, Stroke, Strokes
from cam_pipeline.data.table import unknown_class
from cam_pipeline.data.xml_files import not_decoded
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

LINES = {"line": 2, "linestrip": 1}
"""Fewest points of the shapes that are lines."""
REGIONS = {"polygon": 3, "mask": 2}
"""Fewest points of the shapes that are painted regions; those of a mask are two corners."""
LEFT_OUT = ("rectangle", "circle")
"""Shapes around an object, which hold pixels of other things, too."""
MOST_PIXELS = 100_000_000


def read_labelme(path: Path, classes: Sequence[str], problems: Problems) -> tuple[Strokes, tuple[Click, ...]]:
    """The strokes and the clicks in a file; shapes that are wrong are reported, those of other kinds warned of.

    Raises DataError if the file cannot be read.
    """
    content = load_labelme(path)
    shapes = [*labelme_shapes(content, path, classes, problems)]
    strokes = tuple(shape for shape in shapes if isinstance(shape, Stroke))
    clicks = tuple(shape for shape in shapes if isinstance(shape, Click))
    return Strokes(strokes, size_of(content), str(path)), clicks


def labelme_shapes(
    content: dict[str, Any], path: Path, classes: Sequence[str], problems: Problems, ignored: bool = False
) -> Iterator[Stroke | Click]:
    """The shapes of a file's content in order; with `ignored` also those to be ignored, whose label is then 255.

    Shapes that are wrong are reported, those of other kinds warned of.
    """
    for number, shape in enumerate(content["shapes"], 1):
        where = f"{path}, shape {number}"
        if not ignored and _is_ignored(shape):
            continue
        try:
            found = _shape(shape, classes, where)
        except DataError as error:
            problems.report("shape that cannot be used", str(error))
            continue
        if isinstance(found, str):
            problems.warn("shape that is left out", f"{where}: {found}")
        else:
            yield found


def _is_ignored(shape: Any) -> bool:
    name = shape.get("label") if isinstance(shape, dict) else None
    return isinstance(name, str) and is_ignored(clean(name))


def _shape(shape: Any, classes: Sequence[str], where: str) -> Stroke | Click | str:
    """A shape; text if it is of a kind that says nothing about single pixels."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise DataError(f"{where}: a shape has a label, points and a shape_type; correct it, or delete it")
    kind, name = shape.get("shape_type") or "polygon", clean(shape["label"])
    if kind in LEFT_OUT:
        return f"a {kind} holds more than its object; draw a polygon, a line or a point"
    if kind not in {"point", *LINES, *REGIONS}:
        return f"{shown(str(kind))} is no shape that is read: point, line, linestrip, polygon, mask"
    label = IGNORE_INDEX if is_ignored(name) else label_of(name, classes)
    if label is None:
        raise DataError(f"{where}: {unknown_class(name, classes)}")
    points = _points(shape.get("points"), where)
    fewest = {"point": 1, **LINES, **REGIONS}[kind]
    if len(points) < fewest:
        raise DataError(
            f"{where}: a {kind} has {fewest} points or more, not {len(points)}; draw it again, or delete it"
        )
    if kind == "point":
        return Click(*points[0], label, where)
    bitmap = _bitmap(shape.get("mask"), where) if kind == "mask" else b""
    return Stroke(label, points, kind in REGIONS, bitmap)


def _points(value: Any, where: str) -> tuple[Point, ...]:
    wrong = f"{where}: its points are no list of [x, y] in pixels; draw it again, or delete it"
    try:
        points = tuple((float(x), float(y)) for x, y in value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(wrong) from None
    if not all(math.isfinite(number) for point in points for number in point):
        raise DataError(wrong)
    return points


def _bitmap(text: Any, where: str) -> bytes:
    """The PNG of a mask, which lies with its upper left corner at the first point."""
    from PIL import Image  # only few files have masks

    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels are too many")
            image.load()
    except (TypeError, ValueError, OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: its mask cannot be read ({error}); draw it again, or delete it") from error
    return content


def size_of(content: dict[str, Any]) -> tuple[int, int]:
    """(height, width), or (0, 0) if the file does not tell them."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (height, width) if type(height) is int and type(width) is int and min(height, width) > 0 else (0, 0)


def load_labelme(path: Path) -> dict[str, Any]:
    """The content of a file, whose `shapes` are a list. Raises DataError if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(not_decoded(path, error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); save it again, or delete it") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{path}: no file of Labelme, which is an object with a list of shapes; delete it, or move it")
    return content
