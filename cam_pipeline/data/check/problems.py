"""Two ways to handle mistakes in the data: stop at the first, or note them all and read on."""

from dataclasses import dataclass

from cam_pipeline.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One mistake. `kind` names its group; `message` is one line: where, what, what to do."""

    kind: str
    message: str


class Problems:
    """Takes what readers report. This one stops at the first mistake and ignores warnings."""

    def report(self, kind: str, message: str) -> None:
        """Take a mistake that a run would stop at. Raises DataError; subclasses may note it, and the reader goes on."""
        raise DataError(message)

    def warn(self, kind: str, message: str) -> None:
        """Take a warning of something that may be intended, but seldom is."""


class AllProblems(Problems):
    """Notes everything, in the order in which it was found."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def report(self, kind: str, message: str) -> None:
        self.errors.append(Problem(kind, message))

    def warn(self, kind: str, message: str) -> None:
        self.warnings.append(Problem(kind, message))
