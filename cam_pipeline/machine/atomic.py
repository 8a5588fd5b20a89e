"""Write to the side, then rename: a file under its final name is always whole."""

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cam_pipeline.errors import CannotWrite

ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
"""The name of a file that is being written; the group is its final name."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give the path of a new, empty file beside `path`; rename it to `path` when the block succeeds, else remove it.

    Its name is random, so nobody can put a link there before. Raises CannotWrite for a full disk, a folder that may not
    be written to, and the like.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with write_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield aside
            if not aside.stat().st_size:
                raise ValueError(f"nothing was written for {path}")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def file_aside(path: Path) -> Iterator["PatientFile"]:
    """As `written_aside`, but give the open file, for libraries that handle a full disk badly (see PatientFile)."""
    with written_aside(path) as aside:
        file = PatientFile(aside)
        try:
            yield file
        finally:
            file.close()  # raises the disk's error in place of the library's


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


UNNAMED = "(the system names no file: it is in the run folder, the temporary folder or /dev/shm)"


@contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn system errors about writing `path` into CannotWrite; FileNotFoundError is raised as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise CannotWrite(explain(error, path)) from error


def explain(error: OSError, path: Path | None = None) -> str:
    """One line for a system error: which file, what is wrong with it, and what to do.

    `path` is the file that was being written; None: nothing but the error is known.
    """
    where = path if error.filename is None else _plain(error.filename)
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space"
    elif error.errno == errno.EFBIG:
        remedy = "raise the largest file size allowed (`ulimit -f`), or use another file system"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "get the permission" + (", or set output.dir to another folder" if path is not None else "")
    elif path is not None:
        remedy = "set output.dir to another folder"
    else:
        return f"{where}: {reason}" if where else reason
    problem = (
        f"{where} cannot be written ({reason})"
        if path is not None
        else f"{where}: {reason}"
        if where
        else f"{reason} {UNNAMED}"
    )
    return f"{problem}; {remedy}, then start the same command again: finished work is kept"


def _plain(name: object) -> object:
    """A file's name without the parts that `written_aside` adds."""
    path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    aside = ASIDE.fullmatch(path.name) if path else None
    return path.with_name(aside[1]) if path and aside else name


class PatientFile:
    """A binary file that raises its first error in `check` and `close`, not while it is written to.

    If its file cannot grow, HDF5 crashes with a segmentation fault, and PyTorch raises "unexpected pos 64 vs 0". So
    the error is kept from them: writes after the first error are dropped, and the error is raised at the end.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self._path = path

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file and raise the first error, if there was one."""
        try:
            self._file.close()
        except OSError as error:
            self._keep(error)
        self.check()

    def write(self, content: bytes | memoryview) -> int:
        """Write all of it (the system may take less at a time)."""
        left = memoryview(content).cast("B")
        total = len(left)
        try:
            while left and self._error is None:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            self._keep(error)
        return total

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill `target`, with zeros if the file ends early, as it does if writes were dropped."""
        space = memoryview(target).cast("B")
        filled = 0
        while filled < len(space) and (count := self._file.readinto(space[filled:])):
            filled += count
        space[filled:] = bytes(len(space) - filled)
        return len(space)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        return self._file.read(size) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current offset."""
        return self._file.tell()

    def truncate(self, size: int) -> int:
        """Cut or lengthen the file."""
        try:
            if self._error is None:
                self._file.truncate(size)
        except OSError as error:
            self._keep(error)
        return size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def _keep(self, error: OSError) -> None:
        error.filename = error.filename or str(self._path)
        self._error = self._error or error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
