"""Image files that a user names: files, folders, patterns; and what their results are called."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.data.readers.listing import IMAGE_SUFFIXES
from cam_pipeline.errors import DataError, UserError


@dataclass(frozen=True)
class ImageFile:
    """An image file, and the name of its results: a path without an ending, with `/` between its parts."""

    path: Path
    name: str


def find_images(given: Sequence[str], output: Path) -> list[ImageFile]:
    """The image files that are named, each once: files, folders (all images below them), patterns such as `a/*.jpg`.

    A file of a folder is named by its path below it, others by their own name; where names without their endings
    coincide, the ending stays in the name (`cat_jpg`). What is named itself is taken whatever its ending. Results are
    to go to `output`, below which folders are not searched. Raises DataError for what is not there and for a folder or
    pattern without images, UserError for two files of one name, and for one that its own result would replace.
    """
    found: dict[Path, Path] = {}
    for one in given:
        for path, below in _named(one, output.resolve()):
            found.setdefault(path, below)
    stems = Counter(below.with_suffix("") for below in found.values())
    files = [ImageFile(path, _name(below, stems[below.with_suffix("")] > 1)) for path, below in found.items()]
    by_name: dict[str, Path] = {}
    for file in files:
        if file.path.resolve() == (output / f"{file.name}.png").resolve():
            raise UserError(f"{file.path} would be replaced by its own labels; write them into another folder")
        other = by_name.setdefault(os.path.normcase(file.name), file.path)
        if other != file.path:
            raise UserError(
                f"{other} and {file.path} would both be written to {file.name}.png; predict them into two folders"
            )
    return files


def _named(given: str, output: Path) -> Iterable[tuple[Path, Path]]:
    """The image files that a user means, each with its path below what was given."""
    path = Path(given)
    if path.is_dir():
        files = [*_images_below(path, output)]
        if not files:
            raise DataError(f"{given} has no image files ({', '.join(IMAGE_SUFFIXES)})")
        return [(file, file.relative_to(path)) for file in files]
    if path.exists():
        return [(path, Path(path.name))]
    matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))] if glob.has_magic(given) else []
    files = [file for file in matches if file.is_file() and _is_image(file)]
    if not files:
        raise DataError(f"{given}: no such file or folder" if not matches else f"{given} matches no image files")
    return [(file, Path(file.name)) for file in files]


def _images_below(folder: Path, output: Path) -> Iterable[Path]:
    """All image files in a folder and those below it, sorted; hidden ones, and folders in `output`, are left out."""
    for where, folders, names in os.walk(folder):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if Path(where, name).resolve() != output]
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and _is_image(path):
                yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _name(below: Path, with_ending: bool) -> str:
    stem = below.with_suffix("")
    name = stem.with_name(f"{stem.name}_{below.suffix[1:]}") if with_ending and below.suffix else stem
    return name.as_posix()
