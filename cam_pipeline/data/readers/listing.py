"""The common part of all readers: text files, the class list, and a list of samples with each image once.

Ids are names inside the data root: a path that leads out of it by `..` or a symbolic link is refused, so that no table
can make the program read or name files elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.table import Sample, Table, unknown_class
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

JOINERS = "\u200c\u200d"  # zero width, but letters of Persian and Indian scripts need them
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of image files, in small letters; capitals serve as well."""
LONGEST_PATH = 1000  # letters; systems refuse longer ones at different lengths, so this one rule comes first


def read_text(path: Path, hint: str = "") -> str:
    """Content of a UTF-8 file. Raises DataError, with the hint if there is no such file."""
    try:
        return path.read_text(encoding="utf-8-sig")  # without the byte order mark that Excel writes
    except FileNotFoundError:
        raise DataError(f"there is no file {path}{f'; {hint}' if hint else ''}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def class_names(settings: DataSettings, otherwise: Sequence[str]) -> tuple[str, ...]:
    """Class names: from the settings, else classes.txt, else `otherwise`. Raises DataError if they cannot be used."""
    path = settings.root / "classes.txt"
    names = settings.classes
    if not names and path.is_file():
        names = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
    names = tuple(name for name in names or otherwise if name != "background")
    if not names:
        raise DataError(f"no class is named: give data.classes, or a file {path}")
    for name in names:
        if not name.strip() or not all(letter.isprintable() or letter in JOINERS for letter in name):
            raise DataError(f"the class name {name[:100]!r} is no printable text; rename it")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the class name '{twice}' appears twice in {', '.join(names)}")
    if len(names) >= IGNORE_INDEX:
        raise DataError(f"{len(names)} classes are too many: labels are 1..254, as {IGNORE_INDEX} means ignore")
    return names


class Listing:
    """Samples as a reader finds them. `add` leaves out, and reports, those that are wrong by their name alone."""

    def __init__(self, settings: DataSettings, classes: tuple[str, ...], problems: Problems) -> None:
        self.root, self.classes, self.problems = settings.root, classes, problems
        self.samples: dict[str, Sample] = {}
        self._common: dict[str, Any] = {"max_pixels": settings.max_pixels, "colors": settings.colors}
        self._real_root = settings.root.resolve()
        self._inside: dict[Path, bool] = {}
        self._index = {name: class_id for class_id, name in enumerate(classes, 1)}

    def table(self) -> Table:
        """All that was added."""
        return Table(self.classes, tuple(self.samples.values()))

    def class_ids(self, names: Iterable[str], where: str) -> tuple[int, ...]:
        """Sorted ids of class names; unknown ones are reported and left out."""
        found = set()
        for name in names:
            if name in self._index:
                found.add(self._index[name])
            else:
                self.problems.report("unknown class", f"{where}: {unknown_class(name, self.classes)}")
        return tuple(sorted(found))

    def path(self, name: str, where: str) -> PurePosixPath | None:
        """`name` as a path relative to the root; None, and a report, for one that leaves it."""
        path = PurePosixPath(name)
        if path.is_absolute() and path.is_relative_to(self.root.absolute()):
            path = path.relative_to(self.root.absolute())
        reason = self._reason_against(name, path)
        if reason:
            shown = name if len(name) <= 100 else f"{name[:100]}..."
            self.problems.report("outside the data root", f"{where}: {shown!r} {reason}")
        return None if reason else path

    def add(self, sample: Sample, where: str) -> None:
        """Take a sample whose paths `path` has accepted. The id must be new; `where` is file and line."""
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

    def _reason_against(self, name: str, path: PurePosixPath) -> str:
        """Why a path cannot name an image of this data set; empty if it can. Folders are looked up once."""
        if not path.name or "\0" in name or len(name) > LONGEST_PATH:
            return "is no path of a file; correct it"
        if path.is_absolute() or ".." in path.parts:
            return f"is no path below the data root {self.root}; write it without `..` and relative to the root"
        file = self.root / path
        try:
            name.encode()  # ids are stored as UTF-8
            if file.is_symlink():
                inside = file.resolve().is_relative_to(self._real_root)
            else:
                if file.parent not in self._inside:
                    self._inside[file.parent] = file.parent.resolve().is_relative_to(self._real_root)
                inside = self._inside[file.parent]
        except (OSError, RuntimeError, ValueError) as error:  # a name the system does not take, a loop of links
            return f"is no path of a file ({getattr(error, 'strerror', None) or error}); correct it"
        outside = f"leads out of the data root {self.root} by a symbolic link; put the files themselves there"
        return "" if inside else outside


def image_files(folder: Path) -> dict[str, list[str]]:
    """Names of the image files in a folder by stem, each list sorted; empty if there is no such folder."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path.name)
    return found
