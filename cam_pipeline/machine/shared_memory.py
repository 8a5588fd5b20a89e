"""Shared memory (/dev/shm on Linux): worker processes need it, and containers often have little or none of it."""

import errno
import logging
import multiprocessing
import os
import resource
import shutil
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
LEAST = 2**18
"""Bytes that the locks of a few processes take, and more."""
AMPLE = 2**30
"""Bytes. A batch of loaded images takes up to 50 MB, and each loading process has three of them in flight."""


def why_no_workers() -> str:
    """Why this machine does not give what processes need to talk to each other; "" if it does."""
    try:
        multiprocessing.get_context("spawn").Lock()
        if FOLDER.is_dir() and shutil.disk_usage(FOLDER).free < LEAST:
            return os.strerror(errno.ENOSPC)
    except (OSError, ImportError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def no_workers(reason: str) -> str:
    """The line that says that no worker processes can start, why, and what to do."""
    return (
        f"{FOLDER} cannot be used ({reason}), so that no worker processes can start: all is done in this process, "
        "which is slower. Make it writable (docker run --shm-size=1g)"
    )


@cache
def workers_can_start() -> bool:
    """Whether this machine gives what processes need to talk to each other; logs a warning, once, if it does not."""
    reason = why_no_workers()
    if reason:
        logger.warning("%s", no_workers(reason))
    return not reason


@cache
def is_ample() -> bool:
    """Whether batches can be handed over in shared memory. A container of Docker's has 64 MB of it by default."""
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)  # holds for shared memory, too
    if largest != resource.RLIM_INFINITY and largest < AMPLE:
        return False
    return not FOLDER.is_dir() or shutil.disk_usage(FOLDER).free >= AMPLE
