"""Progress with rate and time left: a live bar on a terminal, a plain line now and then elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0

_settings = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Switch all progress output off (`--quiet`) or on."""
    _settings["quiet"] = quiet


@dataclass
class Tracker:
    """Counts finished work. `advance` is called by the loop; showing it is left to this module."""

    title: str
    total: int
    unit: str
    done: int = 0
    note: str = ""
    _bar: Progress | None = None
    _task: TaskID | None = None
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _first: int = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units; `note` is a short figure to show beside them (the loss, say)."""
        self.done += count
        self.note = note or self.note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=self.note, rate=self.rate())
        elif not _settings["quiet"] and time.monotonic() - self._shown > SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            logger.info(self.line())

    def rate(self) -> str:
        """Units per second since this process began, as text."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        per_second = (self.done - self._first) / seconds
        if 0 < per_second < 0.5:
            return f"{1 / per_second:.1f} s/{self.unit.removesuffix('s')}"
        return f"{per_second:.1f} {self.unit}/s"

    def line(self) -> str:
        """One plain line: title, done of total, rate, time left, note."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        per_second = (self.done - self._first) / seconds
        left = f"{(self.total - self.done) / per_second:.0f} s left" if per_second > 0 else "time left unknown"
        parts = [f"{self.done}/{self.total} {self.unit}", self.rate(), left, *filter(None, [self.note])]
        return f"{self.title}: {', '.join(parts)}"


@contextmanager
def track(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:
    """Show progress of a loop; `done` units were finished by an earlier run."""
    tracker = Tracker(title, total, unit, done, _first=done)
    console = Console(stderr=True)
    if _settings["quiet"] or not console.is_terminal:
        yield tracker
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="", rate="")
        tracker._bar, tracker._task = bar, task
        yield tracker
