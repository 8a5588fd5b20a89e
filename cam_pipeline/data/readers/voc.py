"""The PASCAL VOC layout: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/<split>.txt, Annotations/."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import clean, fold, in_order, is_class
from cam_pipeline.data.readers.listing import (
    IMAGE_SUFFIXES,
    Listing,
    check_inside,
    class_names,
    given_names,
    image_files,
    read_text,
)
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.xml_files import parsed_xml
from cam_pipeline.errors import DataError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main", "ImageSets")
"""Where split lists are looked for, in this order."""
RARE = 0.1
"""A name in fewer of the XML files is taken for a misspelt one, if it is like one of VOC's."""
Names = dict[str, tuple[str, Sequence[str]]]  # id (in one Unicode form) -> where its labels stand, class names


def read_voc(settings: DataSettings, problems: Problems) -> Table:
    """Images of the split lists, one id a line; labels from `data.labels`, a file or the folder of XML files.

    An id without a line, or without an XML file, is an image with unknown labels. In XML every `<object>` counts,
    difficult ones too. If no classes are given and one in the files is not among VOC's twenty, the classes are those in
    the files; a name that is nearly one of VOC's is a mistake.
    """
    root = settings.root
    splits = [split for split in (settings.train, settings.val) if split]
    files_in = cache(image_files)
    lists = {split: _ids(_split_list(settings, split, problems), settings, problems) for split in splits}
    labels = root / settings.labels
    if labels.is_dir():
        names = _names_in_xml(labels, root, [name for ids in lists.values() for name, _ in ids], problems)
        classes = class_names(settings, _classes_in_xml(settings, names, problems), problems)
    else:
        names = _names_in_lines(labels, settings, problems)
        _check_ids(labels, names, {_form(name) for ids in lists.values() for name, _ in ids})
        classes = class_names(settings, VOC_CLASSES, problems)
    listing = Listing(settings, classes, problems)
    class_ids = {name: listing.class_ids(shown, where) for name, (where, shown) in names.items()}
    for split, ids in lists.items():
        for name, where in ids:
            image = _find_image(listing, name, where, files_in)
            mask = listing.path(f"{settings.masks}/{name}.png", where) if image else None
            if image and mask:
                file = root / mask
                shown = class_ids.get(_form(name))
                sample = Sample(name, root / image, split, shown, file if file.is_file() else None)
                listing.add(sample, where)
    return listing.table()


def _split_list(settings: DataSettings, split: str, problems: Problems) -> Path:
    """The file that lists a split: in ImageSets/Segmentation, else in another folder, of which a warning tells.

    Raises DataError, with the lists that there are, if there is none.
    """
    paths = [settings.root / folder / f"{split}.txt" for folder in LIST_FOLDERS]
    found = next((path for path in paths if os.path.lexists(path)), None)
    if found is None:
        names = {path.stem for folder in LIST_FOLDERS for path in (settings.root / folder).glob("*.txt")}
        others = sorted(name for name in names if name.partition("_")[0] not in VOC_CLASSES)
        key = "data.train" if split == settings.train else "data.val"
        known = f"; there are lists of {', '.join(others[:10])}: set {key} to one of them" if others else ""
        none = ", or data.val to ''" if known and split == settings.val else "; or set data.val to ''"
        raise DataError(
            f"there is no file {paths[0]}, nor one of this name in {' or '.join(LIST_FOLDERS[1:])}{known}"
            f"{none if split == settings.val else ''}"
        )
    if found != paths[0]:
        message = f"{found}: there is no {paths[0]}, so this list is taken"
        problems.warn("split list of another folder", message)
    return found


def _classes_in_xml(settings: DataSettings, names: Names, problems: Problems) -> Sequence[str]:
    """VOC's twenty, or the names in the XML files if some of them are others, and not just misspelt."""
    counts = Counter(name for _, shown in names.values() for name in set(shown) if is_class(name))
    others = [name for name in counts if name not in VOC_CLASSES]
    by_fold = {fold(name): name for name in VOC_CLASSES}
    misspelt = [
        name
        for name in others
        if fold(name) in by_fold
        or (counts[name] <= max(1, RARE * len(names)) and get_close_matches(name.casefold(), VOC_CLASSES, cutoff=0.8))
    ]
    if len(misspelt) == len(others) < len(counts) - len(others) or not others:
        return VOC_CLASSES  # a misspelt name is then unknown, which the listing reports
    found = in_order(counts)
    if (2 * len(others) <= len(counts) or misspelt) and not given_names(settings)[0]:
        message = (
            f"the XML files show {', '.join(others[:5])}, none of VOC's twenty, so labels are 1..{len(found)} in the "
            f"order {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}; give data.classes for other numbers"
        )
        problems.warn("classes other than VOC's", message)
    return found


def _ids(path: Path, settings: DataSettings, problems: Problems) -> list[tuple[str, str]]:
    """(id, where it stands) for each line of a split list; a line may also name the image, or image and mask."""
    found = []
    masks: dict[str, str] = {}
    for number, line in enumerate(read_text(path, settings.root).split("\n"), 1):
        words = clean(line).split()
        where = f"{path}, line {number}"
        if not words:
            continue
        name = _id_of(words[0], settings.root)
        mask = f"/{PurePosixPath(words[1]).with_suffix('')}" if len(words) == 2 else ""
        if mask.endswith(f"/{name}"):
            masks.setdefault(mask.removesuffix(name).strip("/"), where)
        elif len(words) > 1:
            message = f"{where}: there must be one id in a line, not '{line.strip()[:100]}'"
            if len(words) == 2 and words[1] in ("1", "-1", "0"):
                message += "; this is the list of one class: take one without the name of a class"
            problems.report("row that cannot be read", message)
            continue
        found.append((name, where))
    for folder, where in masks.items():
        known = [one.strip("/") for one in (settings.masks, settings.scribbles) if one]
        if folder and not any(f"/{folder}".endswith(f"/{one}") for one in known):
            message = f"{where}: the list names masks in {folder}, data.masks is {settings.masks}; set data.masks"
            if "scribble" in folder.casefold():
                message = f"{where}: the list names scribbles in {folder}; set data.scribbles"
            problems.warn("masks of another folder", message)
    return found


def _id_of(word: str, root: Path) -> str:
    """The id in a list: without JPEGImages/ and what stands before it, and without the ending of an image file."""
    name = word.rpartition("JPEGImages/")[2].removeprefix("./")
    path = PurePosixPath(name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return name
    folder = root / "JPEGImages" / path.parent
    if any((folder / f"{path.name}{suffix}").is_file() for suffix in (".jpg", ".png")):
        return name  # its file has two endings
    return path.with_suffix("").as_posix()


def _find_image(
    listing: Listing, name: str, where: str, files_in: Callable[[Path], dict[str, list[str]]]
) -> PurePosixPath | None:
    """Path of an id's image relative to the root, with .jpg if there is no file; None if it leads out of the root."""
    path = listing.path(f"JPEGImages/{name}.jpg", where)
    by_stem = files_in(listing.root / path.parent) if path else {}
    files = by_stem.get(path.stem, []) if path else []
    if path and not files and not path.stem.isascii():
        files = next((files for stem, files in by_stem.items() if _form(stem) == _form(path.stem)), [])
    if path and len(files) > 1:
        message = f"{where}: {' and '.join(files)} in {listing.root / path.parent} both fit; rename or delete one"
        listing.problems.report("two images with one stem", message)
    return listing.path(str(path.with_name(files[0])), where) if path and files else path


def _form(text: str) -> str:
    """The text in one Unicode form: disks and lists write accents as one letter or as two."""
    return unicodedata.normalize("NFC", text)


def _names_in_lines(path: Path, settings: DataSettings, problems: Problems) -> Names:
    """Class names from a file of lines `id class class ...`."""
    found: Names = {}
    text = read_text(path, settings.root, "for XML files set data.labels to their folder (Annotations)")
    for number, line in enumerate(text.split("\n"), 1):
        if clean(line):
            word, *names = clean(line).split()
            name = _form(_id_of(word, settings.root))
            where = f"{path}, line {number}"
            if name in found:
                message = f"{where}: {name} already has labels in {found[name][0]}; put all its classes into one line"
                problems.report("duplicate id", message)
            else:
                found[name] = where, names
    return found


def _check_ids(path: Path, names: Names, listed: set[str]) -> None:
    """Raise DataError if no line of a file of labels begins with an id of a split list: it has another form."""
    if names and listed and not listed & names.keys():
        first, (where, _) = next(iter(names.items()))
        raise DataError(
            f"{where}: no line of {path.name} begins with an id of a split list, such as {min(listed)}; the first "
            f"begins with {first[:60]}; write `id class class`, with blanks between them"
        )


def _names_in_xml(folder: Path, root: Path, ids: list[str], problems: Problems) -> Names:
    """Class names from the objects in `folder/<id>.xml`, for the ids that have such a file."""
    found: Names = {}
    check_inside(folder, root)
    with os.scandir(folder) as entries:
        states = {_form(entry.name): (entry, entry.stat()) for entry in entries if entry.is_file()}
    for name in map(_form, ids):
        if f"{name}.xml" in states:
            entry, state = states[f"{name}.xml"]
            path = folder / entry.name
            try:
                if entry.is_symlink():
                    check_inside(path, root)
                found[name] = str(path), object_names(path, state.st_size, state.st_mtime_ns)
            except DataError as error:
                problems.report("annotation that cannot be read", str(error))
    return found


@lru_cache(maxsize=100_000)
def object_names(path: Path, size: int, mtime_ns: int) -> tuple[str, ...]:
    """Names of the objects in an XML file, read again only if size or time of change differ. Raises DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as XML ({error}); save it again as UTF-8, or replace it") from error
    root = parsed_xml(content, str(path))
    names = [clean(one.findtext("name") or "") for one in root.findall("object")]
    if root.tag != "annotation" or not all(names):
        raise DataError(f"{path}: not a VOC annotation, in which each <object> of an <annotation> has a <name>")
    return tuple(dict.fromkeys(names))
