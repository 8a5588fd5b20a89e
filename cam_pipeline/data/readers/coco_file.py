"""The content of a COCO file, entry by entry: what can be read, what is wrong, and what is doubtful."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from cam_pipeline.data.check.problems import Problem
from cam_pipeline.data.coco_masks import Region
from cam_pipeline.data.readers.coco_outlines import Outlines
from cam_pipeline.data.strokes import Click
from cam_pipeline.data.xml_files import not_decoded
from cam_pipeline.errors import DataError

Key = int | str
LARGEST_SIDE = 65_535
Entry = TypeVar("Entry", bound=BaseModel)


def _as_number(key: Key) -> Key:
    """An id as a number if it is written as one: `"7"`, `"007"` and `"7.0"` are 7."""
    found = re.fullmatch(r"([0-9]{1,18})(\.0+)?", key.strip()) if isinstance(key, str) else None
    return int(found[1]) if found else key


def _side(value: Any) -> int:
    """A height or width; 0 if it is not given, or is none."""
    try:
        side = int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return side if side == float(value) and 1 <= side <= LARGEST_SIDE else 0


def _truth(value: Any) -> Any:
    """`iscrowd`: nothing, in any form, is no."""
    return value or False


def _as_text(value: Any) -> Any:
    """A name that is written as a number is text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Side = Annotated[int, BeforeValidator(_side)]


class Image(BaseModel):
    """The fields that are read of an entry in `images`; `height` and `width` are 0 if not given."""

    id: Key
    file_name: str
    height: Side = 0
    width: Side = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), or (0, 0) if one of them is not known."""
        return (self.height, self.width) if self.height and self.width else (0, 0)


class Category(BaseModel):
    """The fields that are read of an entry in `categories`."""

    id: Annotated[Key, AfterValidator(_as_number)]
    name: Annotated[str, BeforeValidator(_as_text)]
    supercategory: Any = None


class Annotation(BaseModel):
    """The fields that are read of an entry in `annotations`."""

    image_id: Key
    category_id: Annotated[Key, AfterValidator(_as_number)]
    iscrowd: Annotated[bool, BeforeValidator(_truth)] = False
    segmentation: Any = None
    bbox: Any = None
    area: Any = None
    point: Any = None
    points: Any = None
    keypoints: Any = None


Outline = tuple[Key, Region | None]  # category, and its region (its label still to be set) if there is one


@dataclass
class CocoFile:
    """A file's content, checked entry by entry, its mistakes, and what is doubtful.

    `clicks` are the points of annotations by image, each with its category (the label is still to be set). `unread` are
    ids of entries that cannot be read, by the name of their list.
    """

    categories: dict[Key, Category] = field(default_factory=dict)
    images: dict[Key, Image] = field(default_factory=dict)
    outlines: dict[Key, list[Outline]] = field(default_factory=dict)
    clicks: dict[Key, list[tuple[Key, Click]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unread: dict[str, set[Any]] = field(default_factory=dict)

    def wrong(self, kind: str, message: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(kind, message))

    def doubtful(self, kind: str, message: str) -> None:
        """Note what may be right."""
        self.warnings.append(Problem(kind, message))

    @property
    def used(self) -> set[Key]:
        """The categories that have annotations."""
        return {category for outlines in self.outlines.values() for category, _ in outlines}


@lru_cache(maxsize=2)
def read_file(path: Path, size: int, mtime_ns: int) -> CocoFile:
    """A file's content; as every stage asks for it, it is read again only if size or time differ. Raises DataError."""
    content = _load(path)
    file = CocoFile()
    for category in _entries(content, "categories", Category, path, file):
        if file.categories.get(category.id, category).name != category.name:
            file.wrong("duplicate id", f"{path}: the category id {category.id} appears twice; give each its own")
        file.categories.setdefault(category.id, category)
    for image in _entries(content, "images", Image, path, file):
        if image.id in file.images:
            file.wrong("duplicate id", f"{path}: the image id {image.id} appears twice; give each image its own")
        file.images.setdefault(image.id, image)
    _read_annotations(content, path, file)
    drawn = [key for key, outlines in file.outlines.items() if any(region for _, region in outlines)]
    without = [key for key in drawn if file.images[key].size == (0, 0)]
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        message = f"image {without[0]}{more} has no height and width; those of the image file are taken"
        file.doubtful("COCO image without size", f"{path}: {message}")
    return file


def _read_annotations(content: dict[str, Any], path: Path, file: CocoFile) -> None:
    """Note the category and the outline of each annotation at its image."""
    outlines, ids = Outlines(), ImageIds(file.images)
    absent: list[str] = []
    for number, annotation in enumerate(_entries(content, "annotations", Annotation, path, file)):
        where = f"annotations[{number}]"
        category, key = annotation.category_id, ids.find(annotation.image_id)
        if category in file.unread["categories"] or _as_number(annotation.image_id) in file.unread["images"]:
            continue  # the entry that cannot be read is told already
        if category not in file.categories:
            message = f"{path}, {where}: there is no category {category!r}; add it, or correct the id"
            file.wrong("unknown class", message)
        elif key is None:
            absent.append(f"{path}, {where}: there is no image {annotation.image_id!r} in the file")
        else:
            image = file.images[key] = _sized(file.images[key], annotation.segmentation)
            clicks = _clicks(annotation, path, where, file)
            region = None
            if annotation.segmentation or not clicks:
                region = outlines.region(
                    annotation.segmentation, annotation.iscrowd, image.size, annotation.bbox, annotation.area, where
                )
            file.outlines.setdefault(key, []).append((category, region))
            if clicks:
                file.clicks.setdefault(key, []).extend((category, click) for click in clicks)
    if absent and file.outlines:  # as after taking some of the images
        more = f" ({len(absent) - 1} more like this)" if len(absent) > 1 else ""
        file.doubtful("annotation without image", f"{absent[0]}{more}; it is left out")
    for message in absent if not file.outlines else ():
        file.wrong("label without image", f"{message}; add it, or delete the annotation")
    if outlines.all_tiny:  # runs are no shares
        for key, known in file.outlines.items():
            file.outlines[key] = [(category, region if region and region.runs else None) for category, region in known]
    file.warnings += outlines.problems(str(path))
    if ids.other:
        there, here = ids.other[0]
        message = f"annotations write ids in another way than images do: {there!r} is taken for {here!r}"
        file.doubtful("ids of two types", f"{path}: {message}")


def _clicks(annotation: Annotation, path: Path, where: str, file: CocoFile) -> list[Click]:
    """The points of an annotation. Its keypoints count if it has no outline, which says more, and they are visible."""
    found: list[Click] = []
    given = {"point": [annotation.point], "points": annotation.points}
    if not annotation.segmentation:
        given["keypoints"] = _visible(annotation.keypoints)
    for name, points in given.items():
        for point in points if isinstance(points, list) else []:
            if point is None:
                continue
            try:
                x, y = map(float, point)
                if not (math.isfinite(x) and math.isfinite(y)):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                file.doubtful("point that is left out", f"{path}, {where}.{name}: {point!r:.60} is no point [x, y]")
                continue
            found.append(Click(x, y, 0, f"{path}, {where}"))
    return found


def _visible(keypoints: Any) -> list[list[Any]]:
    """The points in x, y, v, x, y, v ... with v = 2: labelled, and not hidden behind other things."""
    if not isinstance(keypoints, list) or len(keypoints) % 3:
        return []
    return [keypoints[place : place + 2] for place in range(0, len(keypoints), 3) if keypoints[place + 2] == 2]


class ImageIds:
    """Finds an image by its id, also if that is a number in one place and text in another."""

    def __init__(self, ids: Iterable[Key]) -> None:
        self.known = set(ids)
        self.by_number: dict[Key, list[Key]] = {}
        for key in self.known:
            self.by_number.setdefault(_as_number(key), []).append(key)
        self.other: list[tuple[Key, Key]] = []

    def find(self, key: Key) -> Key | None:
        """The id of the image that is meant; None if there is none, or more than one fits."""
        if key in self.known:
            return key
        fitting = self.by_number.get(_as_number(key), [])
        if len(fitting) != 1:
            return None
        if not self.other:
            self.other.append((key, fitting[0]))
        return fitting[0]


def _sized(image: Image, shape: Any) -> Image:
    """An image whose entry has no size gets that of its first outline by run lengths."""
    size = shape.get("size") if isinstance(shape, dict) and image.size == (0, 0) else None
    if not isinstance(size, list) or len(size) != 2:
        return image
    return image.model_copy(update={"height": _side(size[0]), "width": _side(size[1])})


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(not_decoded(path, error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); replace it") from error
    lists = ("images", "annotations", "categories")
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise DataError(
            f"{path}: a COCO file is an object with the lists {', '.join(lists)}; missing: {', '.join(missing)}"
        )
    return dict(content)


def _entries(content: dict[str, Any], name: str, kind: type[Entry], path: Path, file: CocoFile) -> Iterator[Entry]:
    """The entries of a list that can be read; the others, and their ids, are noted."""
    unread = file.unread.setdefault(name, set())
    for number, entry in enumerate(content[name]):
        try:
            yield kind.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["", *(str(part) for part in first["loc"] if part not in ("int", "str"))])  # kinds of an id
            file.wrong("entry that cannot be read", f"{path}, {name}[{number}]{key}: {first['msg']}; correct it")
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                unread.add(_as_number(entry["id"]))
