"""The common part of all readers: text files, the class list, and a list of samples with each image once.

Ids are names inside the data root: a path that leads out of it by `..` or a symbolic link is refused, so that no table
can make the program read or name files elsewhere.
"""

import codecs
import errno
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cam_pipeline.config import DataSettings
from cam_pipeline.config.mistakes import shown
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import JOINERS, clean, is_background, is_class, is_ignored, system_part
from cam_pipeline.data.nearest import as_stored, did_you_mean
from cam_pipeline.data.table import Sample, Table, unknown_class
from cam_pipeline.data.xml_files import not_decoded
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jfif",
    ".png",
    ".bmp",
    ".gif",
    ".jp2",
    ".pgm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Endings of image files, in small letters; capitals serve as well."""
LONGEST_PATH = 1000  # letters; systems refuse longer ones at different lengths, so this one rule comes first
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""What a file begins with, and its encoding. UTF-32 comes first: its mark begins with that of UTF-16."""
NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet (xlsx, ods) or a zip file",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (xls)",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
}
"""What files begin with that are given in place of text."""


def check_inside(path: Path, root: Path) -> None:
    """Raise DataError if a file below the root is a symbolic link that leads out of it, or lies behind one.

    What the config itself names outside the root (by an absolute path or `..`) is taken.
    """
    try:
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
        if inside and not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{path} leads out of the data root {root} by a symbolic link; put the file itself there")
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, root: Path, hint: str = "") -> str:
    """Content of a file in UTF-8, or with the byte order mark of UTF-16. Raises DataError if it cannot be read.

    Also if it leads out of the root (see `check_inside`); with the hint if there is no such file.
    """
    check_inside(path, root)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}{did_you_mean(path, root)}{f'; {hint}' if hint else ''}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return decoded(content, path)


def decoded(content: bytes, path: Path) -> str:
    """The text of a file's bytes. Raises DataError, naming the line and what to do, if it is not UTF-8."""
    what = next((what for start, what in NO_TEXT.items() if content.startswith(start)), "")
    if what:
        kind = "CSV UTF-8" if "spreadsheet" in what else "text in UTF-8"
        raise DataError(f"{path} is {what}, not text; save it as {kind}")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(not_decoded(path, error)) from error
    if "\0" in text[:100]:
        raise DataError(f"{path}, line 1: it holds zero bytes, as UTF-16 without its mark does; save it as UTF-8")
    return text


def given_names(settings: DataSettings) -> tuple[str, tuple[str, ...]]:
    """Where the class names are listed, and these: in the settings, else in classes.txt; empty if nowhere."""
    path = settings.root / "classes.txt"
    if settings.classes:
        return "data.classes", tuple(map(clean, settings.classes))
    if not os.path.lexists(path) or path.is_dir():
        return "", ()
    names = map(clean, read_text(path, settings.root).split("\n"))
    return str(path), tuple(name for name in names if name)


def class_names(settings: DataSettings, otherwise: Sequence[str], problems: Problems) -> tuple[str, ...]:
    """Class names: from the settings, else classes.txt, else `otherwise`. Raises DataError if they cannot be used.

    Names of the background and of ignored pixels are no classes; where they are listed under another name or at
    another place than usual, a warning says so.
    """
    source, given = given_names(settings)
    _warn_of_no_classes(source or "the data", given or otherwise, problems)
    names = tuple(name for name in given or otherwise if is_class(name))
    if not names:
        listed = f"give data.classes, or a file {settings.root / 'classes.txt'}"
        raise DataError(f"no image has a label, and no class is named: write labels, or {listed}")
    for name in names:
        if not name.strip() or not all(letter.isprintable() or letter in JOINERS for letter in name):
            raise DataError(f"the class name {name[:100]!r} is no printable text; rename it")
        if system_part([name]):
            where = f"take it out of {source}" if source else "take it out of the labels, or delete it"
            raise DataError(f"the class name '{name}' is that of a file or folder that systems make; {where}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the class name '{twice}' appears twice in {', '.join(names)}")
    if len(names) >= IGNORE_INDEX:
        raise DataError(f"{len(names)} classes are too many: labels are 1..254, as {IGNORE_INDEX} means ignore")
    return names


def no_class_labels(names: Iterable[str]) -> dict[str, int]:
    """Labels of those of the names that are no classes: 0 for the background, 255 for what is ignored."""
    return {name: 0 if is_background(name) else IGNORE_INDEX for name in ("background", *names) if not is_class(name)}


def _warn_of_no_classes(source: str, names: Sequence[str], problems: Problems) -> None:
    """Warn of listed names that are no classes, unless it is a `background` in the first place."""
    kind = "name that is no class"
    for place, name in enumerate(names):
        if is_ignored(name):
            problems.warn(kind, f"{source}: '{name}' is taken for ignored pixels (255 in masks) and gets no label")
        elif is_background(name) and (name != "background" or any(map(is_class, names[:place]))):
            behind = next((other for other in reversed(names[:place]) if is_class(other)), "")
            after = f", though it stands after '{behind}': check the numbers in the masks" if behind else ""
            problems.warn(kind, f"{source}: '{name}' is taken for the background (label 0){after}")


class Listing:
    """Samples as a reader finds them. `add` leaves out, and reports, those that are wrong by their name alone."""

    def __init__(self, settings: DataSettings, classes: tuple[str, ...], problems: Problems) -> None:
        self.root, self.classes, self.problems = settings.root, classes, problems
        self.samples: dict[str, Sample] = {}
        self._common: dict[str, Any] = {"max_pixels": settings.max_pixels, "colors": settings.colors}
        self._real_root = settings.root.resolve()
        self._inside: dict[Path, bool] = {}
        self._index = {name: class_id for class_id, name in enumerate(classes, 1)}
        for name, class_id in list(self._index.items()):
            self._index.setdefault(unicodedata.normalize("NFC", name), class_id)

    def table(self) -> Table:
        """All that was added."""
        return Table(self.classes, tuple(self.samples.values()))

    def class_ids(self, names: Iterable[str], where: str, no_class: str = "delete it") -> tuple[int, ...]:
        """Sorted ids of class names; unknown ones are reported and left out. `no_class` is what to do with background.

        A name that differs from a class in Unicode form alone is that class.
        """
        found = set()
        for name in names:
            class_id = self._index.get(name) or self._index.get(unicodedata.normalize("NFC", name))
            if class_id is not None:
                found.add(class_id)
            elif is_class(name):
                self.problems.report("unknown class", f"{where}: {unknown_class(name, self.classes)}")
            else:
                remedy = no_class if is_background(name) else "delete it"
                message = f"{where}: '{name}' is no label of an image; {remedy}"
                self.problems.report("label that is no class", message)
        return tuple(sorted(found))

    def path(self, name: str, where: str) -> PurePosixPath | None:
        """`name` as a path relative to the root; None, and a report, for one that leaves it.

        If there is no such file, but one whose name differs in Unicode form or by backslashes alone, it is that one.
        """
        path = PurePosixPath(self._stored(name, where))
        if path.is_absolute() and path.is_relative_to(self.root.absolute()):
            path = path.relative_to(self.root.absolute())
        reason = self._reason_against(name, path)
        if reason:
            text = name if len(name) <= 100 else f"{name[:100]}..."
            self.problems.report("outside the data root", f"{where}: {text!r} {reason}")
        return None if reason else path

    def is_left_out(self, name: str, where: str) -> bool:
        """Whether a path is that of a file that a system has made, such as a thumbnail; a warning says so."""
        part = system_part(name.split("/"))
        if part:
            message = f"{where}: {shown(name)} ({shown(part)} is made by systems such as network disks, no data)"
            self.problems.warn("file left out", message)
        return bool(part)

    def add(self, sample: Sample, where: str) -> None:
        """Take a sample whose paths `path` has accepted. The id must be new; `where` is file and line."""
        if self.is_left_out(sample.id, where):
            return
        first = self.samples.get(sample.id)
        if first is None:
            self.samples[sample.id] = replace(sample, source=where, **self._common)
        elif first.image == sample.image:
            self.problems.report(
                "duplicate id", f"{where}: the id {sample.id} appears twice; {first.source} names it already"
            )
        else:
            self.problems.report(
                "two images with one stem",
                f"{where}: the id {sample.id} appears twice: for {sample.image.name}, and for {first.image.name} in "
                f"{first.source}; rename one of the two files",
            )

    def _stored(self, name: str, where: str) -> str:
        """`name`, or as its file is stored; see `path`."""
        if (name.isascii() and "\\" not in name) or "\0" in name or len(name) > LONGEST_PATH:
            return name
        parts = name.replace("\\", "/").split("/")
        try:
            if name.startswith("/") or ".." in parts or os.path.lexists(self.root / name):
                return name
            found = as_stored(self.root, name)
        except (OSError, ValueError):
            return name
        if found is None:
            return name
        how = "with / in place of \\" if name.isascii() else "in another Unicode form"
        self.problems.warn(
            "name written in another way", f"{where}: {name}: the file has this name {how}, and is taken"
        )
        return found

    def _reason_against(self, name: str, path: PurePosixPath) -> str:
        """Why a path cannot name an image of this data set; empty if it can. Folders are looked up once."""
        if not path.name or "\0" in name or len(name) > LONGEST_PATH:
            return "is no path of a file; correct it"
        if path.is_absolute() or ".." in path.parts:
            return f"is no path below the data root {self.root}; write it without `..` and relative to the root"
        file = self.root / path
        try:
            name.encode()  # ids are stored as UTF-8
            if _is_link(file):
                inside = _resolved(file).is_relative_to(self._real_root)
            else:
                if file.parent not in self._inside:
                    self._inside[file.parent] = _resolved(file.parent).is_relative_to(self._real_root)
                inside = self._inside[file.parent]
        except (OSError, RuntimeError, ValueError) as error:  # a name the system does not take, a loop of links
            return f"is no path of a file ({getattr(error, 'strerror', None) or error}); correct it"
        outside = f"leads out of the data root {self.root} by a symbolic link; put the files themselves there"
        return "" if inside else outside


def _is_link(path: Path) -> bool:
    """Raises OSError for a name that the system does not take, as `is_symlink` no longer does since Python 3.14."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _resolved(path: Path) -> Path:
    """Where a path leads. Raises OSError for a loop of links, as `resolve` no longer does since Python 3.13."""
    found = path.resolve()
    try:
        found.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise
    return found


def image_files(folder: Path) -> dict[str, list[str]]:
    """Names of the image files in a folder by stem, each list sorted; empty if there is no such folder."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path.name)
    return found
