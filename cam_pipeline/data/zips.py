"""Paths that lead into zip files, and what these hold; nothing is unpacked to disk."""

import os
import zipfile
from pathlib import Path, PurePosixPath

from cam_pipeline.data.names import system_part
from cam_pipeline.errors import DataError


def is_zip(path: Path) -> bool:
    """Whether there is such a file and its name is that of a zip file."""
    return path.suffix.casefold() == ".zip" and os.path.isfile(path)


def split_path(path: Path) -> tuple[Path, str]:
    """The zip file and the name inside of `scribbles.zip/a.xml`; the path itself and "" if it leads into none."""
    for parent in path.parents:
        if is_zip(parent):
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def xml_members(path: Path) -> dict[str, str]:
    """Names of the XML files in a zip file, by their path without ending, and by their stem if it is only of one.

    Raises DataError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.casefold().endswith(".xml")]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip file ({error}); make it again") from error
    by_path: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for name in names:
        inside = PurePosixPath(name)
        if not system_part(inside.parts):
            by_path[inside.with_suffix("").as_posix()] = name
            by_stem.setdefault(inside.stem, []).append(name)
    return {**{stem: found[0] for stem, found in by_stem.items() if len(found) == 1}, **by_path}
