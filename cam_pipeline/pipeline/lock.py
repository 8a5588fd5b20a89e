"""One process at a time works in a run folder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cam_pipeline.errors import CannotWrite, RunFolderBusy
from cam_pipeline.machine.atomic import write_errors_named


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder. Raises RunFolderBusy, naming the holder, if another process holds it.

    The kernel keeps the lock for this process alone and releases it when the process ends, however it ends.
    """
    path = folder / "lock"
    with write_errors_named(path):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise CannotWrite(f"{path} is a symbolic link, which could lead to any file; delete it")
        file = path.open("a+b", buffering=0)  # unbuffered, so closing it cannot fail
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise RunFolderBusy(
                f"run folder {folder} is in use by {holder}; wait for it, or set output.dir to another folder"
            ) from None
        except OSError as error:
            raise CannotWrite(
                f"{path} cannot be locked ({error.strerror}); set output.dir to a folder on another file system"
            ) from error
        with write_errors_named(path):
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}".encode())
        yield
