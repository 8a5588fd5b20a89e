"""What a reader does with a mistake in the data: stop at the first, or note it and read on."""

from dataclasses import dataclass

from cam_pipeline.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One mistake. `kind` names its group; `message` is one line: where, what, what to do."""

    kind: str
    message: str


class Problems:
    """What readers report to. This one stops at the first mistake and leaves out what is only worth a look."""

    def report(self, kind: str, message: str) -> None:
        """A mistake that a run would stop at. Raises DataError; a reader called with another kind goes on."""
        raise DataError(message)

    def warn(self, kind: str, message: str) -> None:
        """Something that may be meant, but seldom is."""


class AllProblems(Problems):
    """Notes everything, in the order in which it was found."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def report(self, kind: str, message: str) -> None:
        self.errors.append(Problem(kind, message))

    def warn(self, kind: str, message: str) -> None:
        self.warnings.append(Problem(kind, message))
