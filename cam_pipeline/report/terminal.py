"""Output on a terminal: the findings of `check-data`, and evaluations, as text and tables."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from cam_pipeline.data.check.data_set import DataCheck
from cam_pipeline.data.check.problems import Problem
from cam_pipeline.errors import one_line
from cam_pipeline.report.console import console

SHOWN = 10
"""Number of problems of one kind that are shown, unless all are asked for."""
MOST_SPLITS = 6
"""Number of splits that fit beside each other; those that the config uses come first."""
MANY_LABELS = 5
"""Images with this many labels or more share a row."""


def problem_lines(problems: Iterable[Problem], every: bool) -> Iterator[tuple[str, str]]:
    """(indent, line): problems by kind, in the order of first appearance; at most SHOWN of a kind, unless `every`."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(problem.kind, []).append(problem.message)
    for kind, messages in groups.items():
        yield "  ", f"{kind}: {len(messages):,}"
        shown = messages if every else messages[:SHOWN]
        yield from (("    ", message) for message in shown)
        if len(shown) < len(messages):
            yield "    ", f"and {len(messages) - len(shown):,} more (--all lists them)"


def class_table(found: DataCheck) -> Table:
    """Images of each class, by split."""
    splits = found.splits[:MOST_SPLITS]
    grid = Table(box=box.SIMPLE, padding=(0, 1))
    grid.add_column("images that show")
    for split in splits:
        grid.add_column(Text(split.name), justify="right")
    for class_id, name in enumerate(found.classes, 1):
        grid.add_row(Text(name), *(f"{split.by_class[class_id]:,}" for split in splits))
    grid.add_section()
    grid.add_row("none of them", *(f"{split.by_number[0]:,}" for split in splits))
    grid.add_row("unknown (no labels)", *(f"{split.unlabelled:,}" for split in splits))
    grid.add_row("all images", *(f"{split.images:,}" for split in splits))
    grid.add_row("of these with a mask", *(f"{split.masks:,}" for split in splits))
    if any(split.clicks for split in splits):
        grid.add_row("with clicks (number)", *(f"{split.clicks:,} ({split.clicked:,})" for split in splits))
    if any(split.scribbles for split in splits):
        grid.add_row("with a scribble", *(f"{split.scribbles:,}" for split in splits))
    if any(split.corrected for split in splits):
        grid.add_row("corrected", *(f"{split.corrected:,}" for split in splits))
    return grid


def number_table(found: DataCheck) -> Table:
    """Images by number of labels, by split."""
    splits = found.splits[:MOST_SPLITS]
    grid = Table(box=box.SIMPLE, padding=(0, 1))
    grid.add_column("images by number of labels")
    for split in splits:
        grid.add_column(Text(split.name), justify="right")
    for number in range(MANY_LABELS):
        grid.add_row(str(number), *(f"{split.by_number[number]:,}" for split in splits))
    more = [sum(count for number, count in split.by_number.items() if number >= MANY_LABELS) for split in splits]
    grid.add_row(f"{MANY_LABELS} or more", *(f"{count:,}" for count in more))
    return grid


def size_lines(sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Smallest, median and largest sides, and the three most common sizes."""
    if not sizes:
        return
    for name, sides in (("height", [size[0] for size in sizes]), ("width", [size[1] for size in sizes])):
        yield f"{name}: {min(sides)} to {max(sides)} pixels, median {median(sides):.0f}"
    common = [f"{width} x {height} ({count:,})" for (height, width), count in Counter(sizes).most_common(3)]
    yield f"most common (width x height): {', '.join(common)}"


def cost_table(found: DataCheck, times: Mapping[str, float] | None = None, device: str = "") -> Table:
    """A run's steps, how much each does and how long it takes; `times` in seconds, on `device`."""
    grid = Table("a run", "does", box=box.SIMPLE, padding=(0, 1))
    if times:
        grid.add_column(f"takes about, on this {'GPU' if device == 'cuda' else 'CPU'}")
    for name, amount in found.costs:
        grid.add_row(name, amount, *([duration(times[name]) if name in times else ""] if times else []))
    if times:
        total = sum(times.values())
        grid.caption = f"these together: {'about ' if total >= 60 else ''}{duration(total)}"
    return grid


def duration(seconds: float) -> str:
    """Seconds as text that claims no more than an estimate can."""
    if seconds < 60:
        return "under a minute"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def show_check(
    found: DataCheck, every: bool, quiet: bool, times: Mapping[str, float] | None = None, device: str = ""
) -> None:
    """Print what `check_data` found: the contents first, and mistakes last, next to the prompt.

    `times` and `device`: as `training.forecast` gives them.
    """
    if found.splits and not quiet:
        wide = console()
        wide.print(class_table(found), number_table(found))
        for line in size_lines(found.sizes):
            click.echo(line)
        wide.print(cost_table(found, times, device))
    for title, problems in (("WARNINGS", () if quiet else found.warnings), ("MISTAKES", found.errors)):
        if problems:
            click.echo(f"\n{title}")
        for indent, line in problem_lines(problems, every):
            click.echo(indent + one_line(line))
    if not found.errors and not quiet:
        click.echo("\nNo mistakes found.")


def show(report: Mapping[str, Any]) -> None:
    """Print an evaluation as a table, in percent."""
    seeds = ", ".join(sorted({str(row["seed"]) for row in report["rows"]}))
    grid = Table(box=box.SIMPLE, padding=(0, 1), caption=f"in percent, on complete label maps; seed {seeds}")
    grid.add_column("map", no_wrap=True)
    for name in ("mIoU", "prec.", "recall", "FP", "FN", "decided", "backgr."):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("compared on")
    grid.add_column("learned from")
    intervals = False
    for row in report["rows"]:
        shares = [
            f"{100 * row[key]:.1f}" for key in ("mIoU", "precision", "recall", "false_positive", "false_negative")
        ]
        if interval := row.get("mIoU_interval"):
            intervals = True
            shares[0] += " ({:.0f}-{:.0f})".format(*(100 * end for end in interval))
        decided = "" if row["coverage"] is None else f"{100 * row['coverage']:.1f}"
        background = "" if row["background"] is None else f"{row['background']:.2f}"
        compared = Text(f"{row['split']}, {row['images']} images")
        grid.add_row(row["map"], *shares, decided, background, compared, row["used"])
    if intervals:
        grid.caption = f"{grid.caption}; in brackets 95 % of what other such images would give"
    console().print(grid)


def show_classes(report: Mapping[str, Any]) -> None:
    """Print the IoU of every class for every map, in percent, and its mean over frequent and rare classes.

    The groups are left out if one has only one or two classes: they would only repeat those rows.
    """

    def percent(values: list[float | None]) -> list[str]:
        return ["-" if value is None else f"{100 * value:.1f}" for value in values]

    rows = report["rows"]
    grid = Table("IoU %", box=box.SIMPLE, padding=(0, 1))
    grid.add_column("images", justify="right")
    for row in rows:
        grid.add_column(row["map"], justify="right")
    for name in rows[0]["IoU"]:
        count = report["training_images"].get(name, "")
        grid.add_row(Text(name), str(count), *percent([row["IoU"][name] for row in rows]))
    grid.add_section()
    grid.caption = "images: number in the training split."
    if min(map(len, report["groups"].values()), default=0) > 2:
        for group, names in report["groups"].items():
            counts = [report["training_images"][name] for name in names]
            means = percent([row["groups"][group] for row in rows])
            grid.add_row(f"{group} ({len(names)})", f"{min(counts)}-{max(counts)}", *means)
        grid.caption += " head, tail: the quarters of classes with most and with fewest of them"
    console().print(grid)
