"""The file that is probably meant by a name that no file has."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from cam_pipeline.data.names import fold, same_letters

MOST_FILES = 50_000
"""Number of files that are looked through for one in another folder; more would take too long."""


def as_stored(root: Path, path: str) -> str | None:
    """The path (below `root`, with /) under which a file is stored whose name differs in Unicode form alone.

    Backslashes count as /. None if there is no such file, or there are two.
    """
    found = root
    for part in path.replace("\\", "/").split("/"):
        if not os.path.lexists(found / part):
            names = os.listdir(found) if found.is_dir() else []
            same = [name for name in names if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", part)]
            if len(same) != 1:
                return None
            part = same[0]
        found = found / part
    return found.relative_to(root).as_posix()


def nearest_file(path: Path, root: Path, not_this: object = None) -> Path | None:
    """A file of nearly the name of `path`: of other case or ending, or with other blanks or zeros; beside it or not.

    It is not `not_this`: the mask of an image often has its name.
    """
    try:
        by_name = _index(root, root.stat().st_mtime_ns)
    except OSError:
        return None
    beside = os.path.dirname(same_letters(str(path.relative_to(root)))) if path.is_relative_to(root) else ""
    name = PureWindowsPath(path.name)  # Windows writes \\ between folders
    for key in (same_letters(name.name), same_letters(name.stem), fold(name.stem)):
        found = sorted(by_name.get(key, ()), key=lambda one: same_letters(os.path.dirname(one)) != beside)
        for one in found:
            if root / one != not_this:
                return root / one
    return None


def did_you_mean(path: Path, root: Path, not_this: object = None) -> str:
    """The question in brackets, to follow the name of a file that does not exist; empty if there is none like it."""
    near = nearest_file(path, root, not_this)
    return f" (did you mean {near.relative_to(root)}, below {root}?)" if near and near != path else ""


@lru_cache(maxsize=2)
def _index(root: Path, _changed: int) -> dict[str, list[str]]:
    """Paths of files below the root, by keys of their name and of their name without ending."""
    found: dict[str, list[str]] = {}
    count = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            place = os.path.relpath(os.path.join(folder, name), root)
            stem = os.path.splitext(name)[0]
            for key in {same_letters(name), same_letters(stem), fold(stem)}:
                found.setdefault(key, []).append(place)
            count += 1
        if count > MOST_FILES:
            break
    return found
