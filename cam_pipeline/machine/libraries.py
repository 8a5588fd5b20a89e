"""Libraries: which are installed, which are too old, and which cannot be imported."""

import contextlib
import importlib
import io
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata

from cam_pipeline.errors import one_line


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """The versions of distributions; None for one that is not installed. Nothing is imported."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(distribution: str = "cam-pipeline") -> Iterator[tuple[str, str]]:
    """(requirement, what is installed in its place or "") for each requirement that does not hold; extras left out.

    Raises PackageNotFoundError if the distribution itself is not installed, ImportError without `packaging`.
    """
    from packaging.requirements import Requirement  # late: an installation may lack it

    for line in metadata.requires(distribution) or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", version or ""


@cache
def why_broken(module: str) -> str:
    """Why an installed module cannot be imported; "" if it can. What it prints meanwhile is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a damaged installation raises almost anything
        return f"{type(error).__name__}: {one_line(str(error))[:200]}"
    return ""
