"""What the logs of trainings say, epoch by epoch: loss terms and scores."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SCORES = ("mAP", "F1")
"""What is a score in 0..1, the higher the better; everything else is a term of the loss."""
NO_SERIES = ("epoch", "images", "seconds", "time")


@dataclass(frozen=True)
class Training:
    """The log of one stage: (epoch, value) by the name of a loss term or a score."""

    stage: str
    losses: Mapping[str, list[tuple[float, float]]]
    scores: Mapping[str, list[tuple[float, float]]]


def trainings(folder: Path) -> list[Training]:
    """The trainings whose logs a run folder holds, in the order in which they ended."""
    logs = sorted((folder / "logs").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [found for path in logs if (found := _training(path)).losses or found.scores]


def _training(path: Path) -> Training:
    """A log; a number that is not finite is left out, and an epoch that was made twice counts as it was last."""
    series: dict[str, dict[float, float]] = {}
    for entry in _entries(path):
        epoch = entry["epoch"]
        for name, value in entry.items():
            if name not in NO_SERIES and math.isfinite(value):
                series.setdefault(name, {})[epoch] = value
    found = {name: sorted(values.items()) for name, values in series.items()}
    losses = {name: values for name, values in found.items() if not is_score(name)}
    return Training(path.stem, losses, {name: values for name, values in found.items() if is_score(name)})


def is_score(name: str) -> bool:
    """Whether a name in a log is that of a score."""
    return name.startswith(SCORES)


def _entries(path: Path) -> Iterator[dict[str, float]]:
    """The numbers of each line that has an epoch; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            numbers = {
                str(name): float(value)
                for name, value in entry.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            if "epoch" in numbers:
                yield numbers
