"""COCO: a JSON file of images, categories and annotations for each split."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from cam_pipeline.config import DataSettings, toml_value
from cam_pipeline.data.check.problems import Problem, Problems
from cam_pipeline.data.coco_masks import CocoMask, Region
from cam_pipeline.data.names import is_class
from cam_pipeline.data.readers.coco_outlines import Outlines
from cam_pipeline.data.readers.listing import Listing, check_inside, class_names, no_class_labels, not_decoded
from cam_pipeline.data.table import Sample, Table, unknown_class
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

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


Outline = tuple[Key, Region | None]  # category, and its region (its label still to be set) if there is one


@dataclass
class CocoFile:
    """A file's content, checked entry by entry, its mistakes, and what is doubtful.

    `unread` are ids of entries that cannot be read, by the name of their list.
    """

    categories: dict[Key, Category] = field(default_factory=dict)
    images: dict[Key, Image] = field(default_factory=dict)
    outlines: dict[Key, list[Outline]] = field(default_factory=dict)
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


def read_coco(settings: DataSettings, problems: Problems) -> Table:
    """Categories become labels 1..C by rising id, or by their place in `data.classes`; a crowd is a label, too.

    An image without annotations shows none of the classes. Masks are drawn from the segmentations (`data.coco_masks`);
    an image has none if one of its annotations lacks a segmentation. The id is the image's path below the root without
    suffix.
    """
    files = {
        path: (split, read_file(*_state(path, settings.root, may_be_left_out=split != settings.train)))
        for split, path in _paths(settings).items()
    }
    for _, file in files.values():
        for problem in file.problems:
            problems.report(problem.kind, problem.message)
        for warning in file.warnings:
            problems.warn(warning.kind, warning.message)
    categories = _categories({path: file for path, (_, file) in files.items()}, settings, problems)
    classes = class_names(settings, _names(categories), problems)
    listing = Listing(settings, classes, problems)
    labels = no_class_labels(categories.values()) | {name: label for label, name in enumerate(classes, 1)}
    label_of = {key: labels[name] for key, name in categories.items() if name in labels}
    for path, (split, file) in files.items():
        _report_unknown(path, file, label_of, listing)
        folder = settings.images.replace("{split}", split)
        for image in file.images.values():
            outlines = [(label_of[one], region) for one, region in file.outlines.get(image.id, ()) if one in label_of]
            _add(listing, image, outlines, split, folder, f"{path}, image {image.id}")
    return listing.table()


def _names(categories: Mapping[Key, str]) -> list[str]:
    """The class names by rising id, each once; ids that are text come last."""
    ordered = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return list(dict.fromkeys(categories[key] for key in ordered))


def _add(
    listing: Listing, image: Image, outlines: list[tuple[int, Region | None]], split: str, folder: str, where: str
) -> None:
    """Add one image, whose outlines have labels in place of categories."""
    path = listing.path(str(PurePosixPath(folder, image.file_name)), where)
    if path is None:
        return
    regions = tuple(
        Region(label, region.crowd, region.polygons, region.runs) for label, region in outlines if region is not None
    )
    complete = len(regions) == len(outlines)
    sample = Sample(
        id=path.with_suffix("").as_posix(),
        image=listing.root / path,
        split=split,
        class_ids=tuple(sorted({label for label, _ in outlines} - {0, IGNORE_INDEX})),
        mask=CocoMask(*image.size, regions, where) if complete else None,
    )
    listing.add(sample, where)


def _report_unknown(path: Path, file: CocoFile, label_of: Mapping[Key, int], listing: Listing) -> None:
    """Report each category that has annotations but no label."""
    for key in sorted(file.used - label_of.keys(), key=str):
        message = unknown_class(file.categories[key].name, listing.classes)
        listing.problems.report("unknown class", f"{path}, category {key}: {message}")


def _categories(files: Mapping[Path, CocoFile], settings: DataSettings, problems: Problems) -> dict[Key, str]:
    """Name of every category id; the files of the splits must agree.

    A category without annotations is left out if it is only the supercategory of others, or another has its name. Two
    that have annotations and one name are reported, unless the settings name the classes: both are then one.
    """
    found: dict[Key, Category] = {}
    for path, file in files.items():
        for key, category in file.categories.items():
            if found.setdefault(key, category).name != category.name:
                message = (
                    f"{path}: category {key} is '{category.name}', but '{found[key].name}' in another split's file"
                )
                problems.report("categories that differ", f"{message}; use one name, or two ids")
    used = set[Key]().union(*(file.used for file in files.values()))
    where, given = " and ".join(map(str, files)), settings.classes or (settings.root / "classes.txt").is_file()
    kept = dict(found)
    alike = Counter(category.name for category in found.values())
    under = Counter(str(category.supercategory) for category in found.values())
    for key, category in found.items():
        over = under[category.name] > (category.supercategory == category.name)  # over another than itself
        if key not in used and (over or alike[category.name] > 1):
            del kept[key]
            alike[category.name] -= 1
            under[str(category.supercategory)] -= 1
            if over and not given:
                message = f"{where}: category {key}, '{category.name}', has no annotations and stands only above others"
                problems.warn("category that is left out", f"{message}; it is no class here")
    names = {key: category.name for key, category in kept.items()}
    for name in dict.fromkeys(names.values()):
        keys = [str(key) for key in names if names[key] == name]
        if len(keys) > 1 and not given and is_class(name):
            problems.report(
                "category named twice",
                f"{where}: the categories {' and '.join(keys)} have one name, '{name}'; rename all but one, or set "
                f"data.classes = {toml_value(_names(names))} to make them one class",
            )
    return names


def _paths(settings: DataSettings) -> dict[str, Path]:
    """The annotation file of each split."""
    splits = [split for split in (settings.train, settings.val) if split]
    return {split: settings.root / settings.annotations.replace("{split}", split) for split in splits}


def _state(path: Path, root: Path, may_be_left_out: bool) -> tuple[Path, int, int]:
    """A split's file, its size and time of change. Raises DataError if they cannot be read."""
    check_inside(path, root)
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "data.annotations, or data.val to ''" if may_be_left_out else "data.annotations or data.train"
        raise DataError(f"{path} cannot be read ({reason}); put it there, or set {remedy}") from error
    return path, state.st_size, state.st_mtime_ns


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
            region = outlines.region(
                annotation.segmentation, annotation.iscrowd, image.size, annotation.bbox, annotation.area, where
            )
            file.outlines.setdefault(key, []).append((category, region))
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
