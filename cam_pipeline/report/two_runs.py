"""Two runs side by side: settings that differ, and figures of both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cam_pipeline.pipeline.state import Results
from cam_pipeline.report.html_report import MOST, RunReport, gather
from cam_pipeline.report.page import Table, duration, percent, render, size, write_page
from cam_pipeline.version import __version__

FILE = "comparison.html"
"""Not report.html, which the second run may have of its own."""
NO_RESULT = ("output.dir", "run.device", "run.workers")
"""Settings that say where and how something is computed, not what."""


@dataclass(frozen=True)
class Figure:
    """A figure of two runs; None: a run does not have it. `kind` is share, number, seconds or bytes."""

    name: str
    first: float | None
    second: float | None
    kind: str = "share"

    @property
    def difference(self) -> float | None:
        """The second less the first."""
        return None if self.first is None or self.second is None else self.second - self.first


def write_comparison(first: Results, second: Results, path: Path | None = None, most: int = MOST) -> Path:
    """Write the page of two runs: `path`, or comparison.html in the second's folder. Gives its path.

    Errors as `gather`.
    """
    path = path or second.folder / FILE
    write_page(path, comparison_page(gather(first, most, pictures=0), gather(second, most, pictures=0)))
    return path


def different_settings(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value of the first, value of the second) of the settings that differ."""
    keys = [key for key in dict.fromkeys((*first, *second)) if key not in NO_RESULT]
    return [(key, first.get(key, "–"), second.get(key, "–")) for key in keys if first.get(key) != second.get(key)]


def figures(first: RunReport, second: RunReport) -> list[Figure]:
    """The figures that at least one of two runs has."""
    of_first, of_second = dict(_figures(first)), dict(_figures(second))
    found = []
    for name in dict.fromkeys((*of_first, *of_second)):
        (one, kind), (other, kind_of_other) = of_first.get(name, (None, "")), of_second.get(name, (None, ""))
        found.append(Figure(name, one, other, kind or kind_of_other))
    return found


def _figures(report: RunReport) -> Iterator[tuple[str, tuple[float, str]]]:
    """Name, value and kind of each figure of a run."""
    if report.sweep:
        if report.sweep.at_chosen:
            yield "maps: mean IoU at the chosen background score", (report.sweep.at_chosen[1], "share")
            yield "maps: chosen background score", (report.sweep.at_chosen[0], "number")
        yield "maps: mean IoU at the best background score", (report.sweep.best[1], "share")
    for one in report.compared:
        yield f"{one.title}: mean IoU ({one.split})", (one.mean_iou, "share")
        yield f"{one.title}: mean IoU near outlines", (one.boundary, "share")
        for group, value in one.groups.items():
            if value is not None:
                yield f"{one.title}: mean IoU of {group} classes", (value, "share")
        for of_class in one.classes:
            if of_class.iou is not None:
                yield f"{one.title}: IoU of {of_class.name}", (of_class.iou, "share")
    if report.labels:
        yield "labels: mean confidence", (report.labels.mean_confidence, "share")
        yield "labels: undecided pixels", (report.labels.ignored, "share")
        yield "labels: images that lost a class", (len({one.image for one in report.labels.lost}), "number")
    for training in report.trainings:
        for name, values in [*training.losses.items(), *training.scores.items()]:
            yield f"{training.stage}: last {name}", (values[-1][1], "number")
    for stage in report.facts.stages:
        if stage.seconds is not None:
            yield f"{stage.stage}: time", (stage.seconds, "seconds")
        if stage.bytes is not None:
            yield f"{stage.stage}: size", (stage.bytes, "bytes")


def comparison_page(first: RunReport, second: RunReport) -> str:
    """The HTML of two runs side by side."""
    names = names_of(first.facts.name, second.facts.name)
    differing = different_settings(first.facts.settings, second.facts.settings)
    content: dict[str, Any] = {
        "title": f"{names[0]} and {names[1]}",
        "version": __version__,
        "runs": [(name, report.facts) for name, report in zip(names, (first, second), strict=True)],
        "settings_table": Table("Settings that differ", ("setting", *names), differing),
        "figures_table": Table(
            "Figures", ("figure", *names, "difference"), [_row(one) for one in figures(first, second)]
        ),
        "notes": list(_doubts(first, second)),
    }
    return render("two_runs.html.j2", **content)


def names_of(first: str, second: str) -> tuple[str, str]:
    """Short names of two run folders: their last part, or as much as tells them apart."""
    short = Path(first).name, Path(second).name
    return short if short[0] != short[1] else (first, second)


def _row(figure: Figure) -> Sequence[str]:
    difference = figure.difference
    sign = "" if difference is None else "−" if difference < 0 else "+" if difference > 0 else "±"
    change = "–" if difference is None else f"{sign}{_told(abs(difference), figure.kind)}"
    if figure.kind == "share" and difference is not None:
        change = f"{sign}{100 * abs(difference):.1f} points"
    return figure.name, _told(figure.first, figure.kind), _told(figure.second, figure.kind), change


def _told(value: float | None, kind: str) -> str:
    if kind == "share":
        return percent(value)
    if kind == "seconds":
        return duration(value)
    if kind == "bytes":
        return size(value)
    return "–" if value is None else f"{value:.4g}"


def _doubts(first: RunReport, second: RunReport) -> Iterator[str]:
    """Why figures of two runs may say less than they seem to."""
    if first.facts.classes != second.facts.classes:
        yield "The runs have different classes: their mean IoUs are of different things."
    if first.facts.images != second.facts.images:
        yield "The runs have different numbers of images."
    images = [{one.title: (one.split, one.images) for one in report.compared} for report in (first, second)]
    if any(images[0][title] != images[1][title] for title in images[0].keys() & images[1].keys()):
        yield "The runs were compared with different masks."
