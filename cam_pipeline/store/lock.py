"""One process at a time works in a run folder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cam_pipeline.errors import RunFolderBusy


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder. Raises RunFolderBusy, naming the holder, when another process does.

    The lock is the kernel's and belongs to this process alone: it ends with it, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunFolderBusy(
                f"run folder {folder} is in use by {holder}; wait for it, or set output.dir to another folder"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}")
        file.flush()
        yield
