"""COCO: a JSON file of images, categories and annotations for each split."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problem, Problems
from cam_pipeline.data.coco_masks import CocoMask, Region, packed_polygon, packed_runs
from cam_pipeline.data.readers.listing import Listing, class_names
from cam_pipeline.data.table import Sample, Table, unknown_class
from cam_pipeline.errors import DataError

Key = int | str
Side = Annotated[int, Field(ge=1, le=65_535)]
Entry = TypeVar("Entry", bound=BaseModel)


class Image(BaseModel):
    """The fields that are read of an entry in `images`."""

    id: Key
    file_name: str
    height: Side
    width: Side


class Category(BaseModel):
    """The fields that are read of an entry in `categories`."""

    id: int
    name: str


class Runs(BaseModel):
    """A segmentation by run lengths, as numbers or compressed; `size` is the (height, width) that they fill."""

    counts: list[int] | str
    size: list[int] = []


class Annotation(BaseModel):
    """The fields that are read of an entry in `annotations`."""

    image_id: Key
    category_id: int
    iscrowd: bool = False
    segmentation: list[list[FiniteFloat]] | Runs | None = None


Outline = tuple[int, Region | None]  # category, and its region (labelled by the category) if there is one


@dataclass
class CocoFile:
    """A file's content, checked entry by entry, and its mistakes."""

    categories: dict[int, str] = field(default_factory=dict)
    images: dict[Key, Image] = field(default_factory=dict)
    outlines: dict[Key, list[Outline]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, kind: str, message: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(kind, message))


def read_coco(settings: DataSettings, problems: Problems) -> Table:
    """Categories become labels 1..C by rising id, or by their place in `data.classes`; a crowd is a label, too.

    An image without annotations shows none of the classes. Masks are drawn from the segmentations (`data.coco_masks`);
    an image has none if one of its annotations lacks a segmentation. The id is the image's path below the root without
    suffix.
    """
    files = {
        path: (split, read_file(*_state(path, may_be_left_out=split != settings.train)))
        for split, path in _paths(settings).items()
    }
    for _, file in files.values():
        for problem in file.problems:
            problems.report(problem.kind, problem.message)
    categories = _categories({path: file for path, (_, file) in files.items()}, problems)
    classes = class_names(settings, [categories[number] for number in sorted(categories)])
    listing = Listing(settings, classes, problems)
    labels = {"background": 0} | {name: label for label, name in enumerate(classes, 1)}
    label_of = {number: labels[name] for number, name in categories.items() if name in labels}
    for path, (split, file) in files.items():
        _report_unknown(path, file, label_of, listing)
        folder = settings.images.replace("{split}", split)
        for image in file.images.values():
            outlines = [(label_of[one], region) for one, region in file.outlines.get(image.id, ()) if one in label_of]
            _add(listing, image, outlines, split, folder, f"{path}, image {image.id}")
    return listing.table()


def _add(listing: Listing, image: Image, outlines: list[Outline], split: str, folder: str, where: str) -> None:
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
        class_ids=tuple(sorted({label for label, _ in outlines} - {0})),
        mask=CocoMask(image.height, image.width, regions, where) if complete else None,
    )
    listing.add(sample, where)


def _report_unknown(path: Path, file: CocoFile, label_of: dict[int, int], listing: Listing) -> None:
    """Report each category that has annotations but no label."""
    used = {category for outlines in file.outlines.values() for category, _ in outlines}
    for number in sorted(used - label_of.keys()):
        message = unknown_class(file.categories[number], listing.classes)
        listing.problems.report("unknown class", f"{path}, category {number}: {message}")


def _categories(files: dict[Path, CocoFile], problems: Problems) -> dict[int, str]:
    """Name of every category id; the files of the splits must agree."""
    found: dict[int, str] = {}
    for path, file in files.items():
        for number, name in file.categories.items():
            if found.setdefault(number, name) != name:
                message = f"{path}: category {number} is '{name}', but '{found[number]}' in another split's file"
                problems.report("categories that differ", f"{message}; use one name, or two ids")
    return found


def _paths(settings: DataSettings) -> dict[str, Path]:
    """The annotation file of each split."""
    splits = [split for split in (settings.train, settings.val) if split]
    return {split: settings.root / settings.annotations.replace("{split}", split) for split in splits}


def _state(path: Path, may_be_left_out: bool) -> tuple[Path, int, int]:
    """A split's file, its size and time of change. Raises DataError if they cannot be read."""
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
        if category.id in file.categories:
            file.wrong("duplicate id", f"{path}: the category id {category.id} appears twice; give each its own")
        file.categories.setdefault(category.id, category.name)
    for image in _entries(content, "images", Image, path, file):
        if image.id in file.images:
            file.wrong("duplicate id", f"{path}: the image id {image.id} appears twice; give each image its own")
        file.images.setdefault(image.id, image)
    for number, annotation in enumerate(_entries(content, "annotations", Annotation, path, file)):
        where = f"{path}, annotations[{number}]"
        if annotation.category_id not in file.categories:
            file.wrong(
                "unknown class", f"{where}: there is no category {annotation.category_id}; add it, or correct the id"
            )
        elif annotation.image_id not in file.images:
            message = f"{where}: there is no image {annotation.image_id} in the file; add it, or delete the annotation"
            file.wrong("label without image", message)
        else:
            outlines = file.outlines.setdefault(annotation.image_id, [])
            outlines.append((annotation.category_id, _region(annotation, file, where)))
    return file


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
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
    """The entries of a list that can be read; the others are noted."""
    for number, entry in enumerate(content[name]):
        try:
            yield kind.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["", *(str(part) for part in first["loc"])])
            file.wrong("entry that cannot be read", f"{path}, {name}[{number}]{key}: {first['msg']}; correct it")


def _region(annotation: Annotation, file: CocoFile, where: str) -> Region | None:
    """The region of an annotation; None if it has no segmentation, or a wrong one, which is reported."""
    image = file.images[annotation.image_id]
    shape = annotation.segmentation
    if not shape:
        return None
    label, crowd = annotation.category_id, annotation.iscrowd
    try:
        if isinstance(shape, Runs):
            if shape.size != [image.height, image.width]:
                raise ValueError(
                    f"its run lengths are for the size {shape.size}, the image is {[image.height, image.width]} "
                    "([height, width])"
                )
            return Region(label, crowd, runs=packed_runs(shape.counts, image.height, image.width))
        return Region(label, crowd, tuple(packed_polygon(part, image.height, image.width) for part in shape))
    except ValueError as error:
        file.wrong("outline that cannot be drawn", f"{where}: {error}; correct or delete it")
        return None
