"""Room on disks: how much is free where something is to be written, and whether it can be."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """A folder that exists, and the disk under it; in bytes."""

    folder: Path
    total: int
    free: int
    refusal: str
    """Why nothing can be written there; "" if it can."""


def room_at(path: Path) -> Room:
    """The room for a file or folder that need not exist: of the nearest folder above it that does.

    A file without a name is written for a moment. Raises OSError if the disk cannot be looked at.
    """
    folder = path.absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    leads_nowhere = not os.path.exists(folder)
    usage = shutil.disk_usage(folder.parent if leads_nowhere else folder)
    return Room(folder, usage.total, usage.free, "a link leads nowhere" if leads_nowhere else _refusal(folder))


def _refusal(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"\0")
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
