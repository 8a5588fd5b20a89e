"""The report of a run as one HTML page: what was run, curves, what labels say of themselves, and how good they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cam_pipeline.errors import StageNotReady
from cam_pipeline.pipeline.state import Results
from cam_pipeline.report.curves import Training, trainings
from cam_pipeline.report.label_facts import BINS, LabelFacts, disagreement, label_facts
from cam_pipeline.report.page import (
    Chart,
    Table,
    chart,
    chart_figure,
    chart_style,
    counted,
    duration,
    line_style,
    percent,
    render,
    size,
    write_page,
)
from cam_pipeline.report.run_facts import RunFacts, run_facts
from cam_pipeline.version import __version__

FILE = "report.html"
LAST = "train_seg"
"""The stage that ends a run; it and all that it needs are told of."""
MOST = 500
"""Images that are looked at, evenly spread: reading thousands takes minutes."""
LISTED = 20
"""Rows of a list of images."""
FEW_CLASSES = 30
"""Up to so many classes are named in the text; more are folded away."""


@dataclass(frozen=True)
class RunReport:
    """All that is told of a run, as plain values; a part is None, or empty, if there is nothing to tell.

    `disagreement` is (image, how far the merged networks disagree), most first.
    """

    facts: RunFacts
    trainings: Sequence[Training]
    labels: LabelFacts | None
    disagreement: Sequence[tuple[str, float]]


def gather(results: Results, most: int = MOST) -> RunReport:
    """What is known of a run folder. Raises StageNotReady if no stage has a result, DataError if the data is wrong."""
    states = results.states([LAST])
    if all(state.kind in ("missing", "partial") for state in states.values()):
        raise StageNotReady(f"there is nothing to report yet in {results.folder}. Run: {results.command('train_cls')}")
    current = {name: results.path(name) for name, state in states.items() if state.kind == "current"}
    table, config = results.dataset.table, results.config
    samples = [sample for sample in table.samples if sample.split in config.cam.splits]
    merged = current.get(config.refine.maps_from) if config.refine.merge_with else None
    return RunReport(
        facts=run_facts(results, states),
        trainings=trainings(results.folder),
        labels=label_facts(current["make_labels"], samples, most, LISTED) if "make_labels" in current else None,
        disagreement=disagreement(merged, samples, most) if merged else (),
    )


def write_report(results: Results, path: Path | None = None, most: int = MOST) -> Path:
    """Write the page of a run: `path`, or report.html in the run folder. Gives its path. Errors as `gather`."""
    path = path or results.folder / FILE
    write_page(path, report_page(gather(results, most)))
    return path


def report_page(report: RunReport) -> str:
    """The HTML of a report."""
    sections = [("run", "What was run")]
    sections += [("curves", "Training")] if report.trainings else []
    sections += [("labels", "Labels, seen without masks")] if report.labels else []
    content: dict[str, Any] = {
        "title": f"Report of {Path(report.facts.name).name}",
        "version": __version__,
        "sections": sections,
        "report": report,
        "facts": report.facts,
        "few_classes": FEW_CLASSES,
        **run_content(report.facts),
        "curves": [(training.stage, *_training_content(training)) for training in report.trainings],
        **(_labels_content(report) if report.labels else {}),
    }
    return render("report.html.j2", **content)


def run_content(facts: RunFacts) -> dict[str, Any]:
    """The tables about what was run."""
    data = [(split, counted(count), counted(facts.masks.get(split, 0))) for split, count in facts.images.items()]
    changed = [(key, facts.settings[key], default or "–") for key, default in facts.defaults.items()]
    weights = [(one.key, one.network, one.weights, one.licence) for one in facts.weights]
    forecast = any(one.forecast is not None for one in facts.stages)
    stages = [
        (
            one.stage,
            one.file,
            one.state,
            duration(one.seconds),
            *([duration(one.forecast)] if forecast else []),
            size(one.bytes),
        )
        for one in facts.stages
    ]
    columns = ("stage", "file", "state", "time", *(["forecast"] if forecast else []), "size")
    return {
        "data_table": Table("Images by split", ("split", "images", "with a mask"), data),
        "changed_table": Table("Settings that differ from the defaults", ("setting", "here", "default"), changed),
        "settings_table": Table("All settings", ("setting", "value"), [*facts.settings.items()]),
        "versions_table": Table(
            "Versions, as installed when this page was made", ("library", "version"), [*facts.versions.items()]
        ),
        "weights_table": Table(
            "What the networks started from", ("setting", "network", "weights", "licence of the weights"), weights
        ),
        "stages_table": Table("Stages, upstream first", columns, stages),
        "missing": [one for one in facts.stages if one.state != "current"],
    }


def _training_content(training: Training) -> tuple[list[Chart], Table]:
    """The charts of a training and the table of its first, best and last values."""
    charts = []
    if training.losses:
        charts.append(_lines(training.losses, f"Loss terms of {training.stage} by epoch", "loss"))
    if training.scores:
        charts.append(_lines(training.scores, f"Scores of {training.stage} by epoch", "score", top=1.0))
    rows = []
    for name, values in [*training.losses.items(), *training.scores.items()]:
        only = [value for _, value in values]
        best = max(only) if name in training.scores else min(only)
        rows.append((name, f"{only[0]:.4g}", f"{best:.4g}", f"{only[-1]:.4g}"))
    return charts, Table(f"{training.stage}: values", ("term", "first", "best", "last"), rows)


def _lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, unit: str, top: float | None = None
) -> Chart:
    """Lines over epochs, told apart by colour and dashes."""
    with chart_style():
        figure = chart_figure()
        axes = figure.add_subplot()
        for number, (name, values) in enumerate(series.items()):
            epochs, heights = zip(*values, strict=True)
            marker = "o" if len(values) == 1 else None
            axes.plot(epochs, heights, label=name, linewidth=2, marker=marker, **line_style(number))
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.set_ylim(bottom=0 if min(min(v for _, v in one) for one in series.values()) >= 0 else None, top=top)
        axes.legend()
        last = "; ".join(f"{name} ends at {values[-1][1]:.3g}" for name, values in series.items())
        return chart(figure, f"{title}. {last}.")


def _labels_content(report: RunReport) -> dict[str, Any]:
    """Charts and tables of what the labels say of themselves."""
    labels, classes = report.labels, report.facts.classes
    assert labels is not None

    def name(class_id: int) -> str:
        return classes[class_id - 1]

    pairs = sorted(labels.together.items(), key=lambda item: -item[1])
    said = {who: count for who, count in labels.origins.items() if who != "pseudo-label" and count}
    pixels = sum(labels.origins.values())
    return {
        "confidence": _histogram(labels.confidence),
        "doubtful_table": Table(
            "The least confident images",
            ("image", "mean confidence"),
            [(image, f"{mean:.3f}") for image, mean in labels.doubtful],
        ),
        "lost_count": len({one.image for one in labels.lost}),
        "lost_table": Table(
            "Images whose label lost a class that they show",
            ("image", "lost class"),
            [(one.image, name(one.class_id)) for one in labels.lost],
        ),
        "odd_table": Table(
            "Unusual areas, the strangest first",
            ("image", "class", "covers", "usually"),
            [(one.image, name(one.class_id), percent(one.share), percent(one.usual)) for one in labels.odd[:LISTED]],
        ),
        "said_table": Table(
            "Pixels that people said",
            ("how", "pixels", "share"),
            [(who, counted(count), f"{100 * count / pixels:.3g} %") for who, count in said.items()],
        ),
        "together_table": Table(
            "Classes that images show together, most often first",
            ("class", "and", "images"),
            [(name(first), name(second), counted(count)) for (first, second), count in pairs[:LISTED]],
        ),
        "disagreement_table": Table(
            "Images about which the merged networks disagree most",
            ("image", "disagreement"),
            [(image, f"{value:.3f}") for image, value in report.disagreement[:LISTED]],
        ),
    }


def _histogram(counts: Sequence[int]) -> Chart:
    """Bars of the share of pixels by confidence."""
    total = sum(counts) or 1
    shares = [100 * count / total for count in counts]
    with chart_style():
        figure = chart_figure(height=2.6)
        axes = figure.add_subplot()
        places = [(number + 0.5) / BINS for number in range(BINS)]
        axes.bar(places, shares, width=0.9 / BINS, color="#0072b2")
        axes.set(title="Confidence of the labels", xlabel="confidence", ylabel="% of pixels", xlim=(0, 1))
        sure = sum(shares[math.ceil(0.9 * BINS) :])
        doubtful = sum(shares[: BINS * 6 // 10])
        return chart(
            figure, f"Histogram of label confidence: {sure:.0f} % of pixels above 0.9, {doubtful:.0f} % below 0.6."
        )
