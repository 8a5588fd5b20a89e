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
from cam_pipeline.report.mask_facts import Compared, Sweep, compared_labels, compared_segmenter, sweep
from cam_pipeline.report.page import (
    SERIES,
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
from cam_pipeline.report.shown import Shown, shown
from cam_pipeline.version import __version__

FILE = "report.html"
MOST = 500
"""Images that are looked at, evenly spread: reading thousands takes minutes."""
LISTED = 20
"""Rows of a list of images."""
FEW_CLASSES = 30
"""Up to so many classes are named in the text; more are folded away."""


@dataclass(frozen=True)
class RunReport:
    """All that is told of a run, as plain values; a part is None, or empty, if there is nothing to tell.

    `disagreement` is (image, how far the merged networks disagree), most first. `compared` are the label maps that
    could be compared with masks, and `best` and `worst` what was made of some images.
    """

    facts: RunFacts
    trainings: Sequence[Training]
    labels: LabelFacts | None
    disagreement: Sequence[tuple[str, float]] = ()
    sweep: Sweep | None = None
    compared: Sequence[Compared] = ()
    worst: Sequence[Shown] = ()
    best: Sequence[Shown] = ()


def gather(results: Results, most: int = MOST, pictures: int = LISTED) -> RunReport:
    """What is known of a run folder, with the best and the worst images, `pictures` of each.

    Raises StageNotReady if no stage has a result, DataError if the data is wrong."""
    states = results.states(results.shown())
    if all(state.kind in ("missing", "partial") for state in states.values()):
        raise StageNotReady(
            f"there is nothing to report yet in {results.folder}. Run: {results.command(next(iter(states)))}"
        )
    current = {name: results.path(name) for name, state in states.items() if state.kind == "current"}
    table, config = results.dataset.table, results.config
    samples = [sample for sample in table.samples if sample.split in config.cam.splits]
    merged = current.get(config.refine.maps_from) if config.refine.merge_with else None
    made_by = config.labels_stage
    labels = compared_labels(config, table, current, most)
    segmenter = compared_segmenter(config, table, current, most)
    each = labels.each if labels and pictures else ()
    worst = each[: min(pictures, -(-len(each) // 2))]  # no image is among the best and the worst
    best = each[::-1][: min(pictures, len(each) // 2)]
    return RunReport(
        facts=run_facts(results, states),
        trainings=sorted(trainings(results.folder), key=lambda one: [*states, one.stage].index(one.stage)),
        labels=label_facts(current[made_by], samples, most, LISTED) if made_by in current else None,
        disagreement=disagreement(merged, samples, most) if merged else (),
        sweep=sweep(config, table, current, most),
        compared=[one for one in (labels, segmenter) if one],
        worst=shown(config, table, current, worst),
        best=shown(config, table, current, best),
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
    sections += [("masks", "Compared with masks")] if report.compared or report.sweep else []
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
        "sweep_chart": _sweep_chart(report.sweep) if report.sweep else None,
        "compared": [_compared_content(one) for one in report.compared],
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


def _sweep_chart(found: Sweep) -> Chart:
    """Mean IoU over background scores, with the chosen and the best point."""
    at_best, best = found.best
    alt = f"Mean IoU of the maps by background score. It is best at {at_best:.2f}, with {percent(best)}."
    with chart_style():
        figure = chart_figure()
        axes = figure.add_subplot()
        axes.plot(found.backgrounds, [100 * value for value in found.mean_ious], linewidth=2, **line_style(0))
        axes.plot(at_best, 100 * best, "^", color=SERIES[2], markersize=9, label=f"best: {at_best:.2f}")
        if found.at_chosen:
            at, value = found.at_chosen
            axes.plot(at, 100 * value, "o", color=SERIES[1], markersize=9, label=f"chosen: {at:.2f}")
            alt += f" Chosen is {at:.2f} ({found.how}), with {percent(value)}."
        axes.set(title="Background score", xlabel="background score", ylabel="mean IoU of the maps, %")
        axes.legend()
        return chart(figure, alt)


def _compared_content(found: Compared) -> tuple[Compared, Table, Table, Table]:
    """Tables of a comparison: its classes, groups of classes, and pairs that are confused."""
    classes = [
        (
            one.name,
            one.group or "–",
            "–" if one.training_images is None else counted(one.training_images),
            *map(percent, (one.iou, one.false_positive, one.false_negative, one.boundary)),
        )
        for one in found.classes
    ]
    columns = ("class", "group", "training images", "IoU", "false positive", "false negative", "IoU near outlines")
    return (
        found,
        Table(f"Classes: {found.title}", columns, classes),
        Table(
            f"Frequent and rare classes: {found.title}",
            ("group", "mean IoU"),
            [(name, percent(value)) for name, value in found.groups.items()],
        ),
        Table(
            f"Confused pairs: {found.title}",
            ("class", "is taken for", "share of its pixels"),
            [(true, taken, percent(share)) for true, taken, share in found.confused],
        ),
    )


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
