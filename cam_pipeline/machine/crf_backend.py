"""Which of the CRF's backends this machine uses."""

import json
import logging
import math
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import CannotWrite, LibraryMissing
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.cores import usable_cores
from cam_pipeline.machine.threads import thread_count
from cam_pipeline.version import __version__

logger = logging.getLogger(__name__)

BACKENDS = ("pydensecrf", "torch")


@dataclass(frozen=True)
class CrfBackend:
    """`name`: torch or pydensecrf; `why` in a few words."""

    name: str
    why: str


def crf_backend(wanted: str, device_type: str, threads: int = 1) -> CrfBackend:
    """The backend for `refine.crf_backend` = `wanted`, on a device of this type, with so many threads of torch.

    For `auto` on the CPU, with pydensecrf installed, both are timed once on this machine; the result is kept in the
    user's cache folder. Raises LibraryMissing if pydensecrf is wanted and cannot be imported.
    """
    from cam_pipeline.ops import crf  # late: it imports torch

    if wanted == "pydensecrf":
        crf.import_densecrf()
    if wanted != "auto":
        return CrfBackend(wanted, f"refine.crf_backend = '{wanted}'")
    if device_type != "cpu":
        return CrfBackend("torch", "computes on the GPU")
    try:
        crf.import_densecrf()
    except LibraryMissing as error:
        absent = isinstance(error.__cause__, ModuleNotFoundError)
        return CrfBackend("torch", f"pydensecrf {'is not installed' if absent else 'cannot be imported'}")
    seconds = _measured(threads)
    name = crf.faster_of(seconds)
    ((other, slower),) = ((one, taken) for one, taken in seconds.items() if one != name)
    return CrfBackend(name, f"{other} takes {slower / seconds[name]:.2f} times as long on this machine")


def threads_per_image(run: RunSettings) -> int:
    """Threads of torch for an image in `refine_cams`: one in a worker process; a single worker is this process."""
    from cam_pipeline.machine.parallel import worker_count  # late: joblib

    return thread_count(run.threads) if worker_count(run) == 1 else 1


def note_file() -> Path | None:
    """Where measurements are kept: below XDG_CACHE_HOME, else ~/.cache; None without a home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "cam-pipeline" / "crf.json"


@cache
def _measured(threads: int) -> dict[str, float]:
    """Seconds an image with each backend, as noted by an earlier process, else measured now and noted."""
    from cam_pipeline.ops.crf import seconds_per_image  # late: it imports torch

    file = note_file()
    notes = read_json(file) if file else {}
    key = f"{_setup()}, {threads} threads"
    known = notes.get(key)
    if isinstance(known, dict) and all(_is_time(known.get(name)) for name in BACKENDS):
        return {name: known[name] for name in BACKENDS}
    seconds = seconds_per_image(threads)
    logger.info("CRF: %s", ", ".join(f"{name} takes {taken:.3f} s an image" for name, taken in seconds.items()))
    if file:
        try:
            write_text(file, json.dumps({**notes, key: seconds}, indent=1))
        except (CannotWrite, OSError) as error:
            logger.debug("not kept for the next time: %s", error)
    return seconds


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, float) and 0 < seconds < math.inf


def _setup() -> str:
    """What the times depend on: processor, cam-pipeline, torch and pydensecrf2."""
    versions = [f"cam-pipeline {__version__}"]
    for name in ("torch", "pydensecrf2"):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return ", ".join([f"{platform.machine()} {usable_cores()} cores", *versions])
