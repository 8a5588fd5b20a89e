"""Two ways to handle mistakes in the data: stop at the first, or note them all and read on."""

import logging
from dataclasses import dataclass

from cam_pipeline.errors import DataError, one_line

logger = logging.getLogger(__name__)

MOST = 5
"""Number of warnings of one kind that a run logs."""


@dataclass(frozen=True)
class Problem:
    """One mistake. `kind` names its group; `message` is one line: where, what, what to do."""

    kind: str
    message: str


class Problems:
    """Takes what readers report. This one stops at the first mistake, and keeps warnings until they are logged."""

    def __init__(self) -> None:
        self.warnings: list[Problem] = []

    def report(self, kind: str, message: str) -> None:
        """Take a mistake that a run would stop at. Raises DataError; subclasses may note it, and the reader goes on."""
        raise DataError(message)

    def warn(self, kind: str, message: str) -> None:
        """Take a warning of something that may be intended, but seldom is."""
        self.warnings.append(Problem(kind, message))

    def log_warnings(self) -> None:
        """Log all warnings taken so far, at most MOST of a kind, and forget them."""
        kinds: dict[str, list[str]] = {}
        for problem in self.warnings:
            kinds.setdefault(problem.kind, []).append(problem.message)
        self.warnings = []
        for kind, messages in kinds.items():
            for message in messages[:MOST]:
                logger.warning("%s", one_line(f"{kind}: {message}"))
            if len(messages) > MOST:
                logger.warning("%s: and %d more; see cam-pipeline check-data", kind, len(messages) - MOST)


class AllProblems(Problems):
    """Notes everything, in the order in which it was found."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Problem] = []

    def report(self, kind: str, message: str) -> None:
        self.errors.append(Problem(kind, message))
