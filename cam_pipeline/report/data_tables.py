"""The findings of `check-data` as text and tables for a terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from rich import box
from rich.table import Table
from rich.text import Text

from cam_pipeline.data.check.data_set import DataCheck
from cam_pipeline.data.check.problems import Problem

SHOWN = 10
"""Problems of one kind that are shown unless all are asked for."""
MOST_SPLITS = 6
"""Splits that fit beside each other; those that the config uses come first."""
MANY_LABELS = 5
"""Images with as many labels or more share a row."""


def problem_lines(problems: Iterable[Problem], every: bool) -> Iterator[tuple[str, str]]:
    """(indent, line): problems by kind, in the order of their first; of a kind not more than SHOWN, unless `every`."""
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
    return grid


def number_table(found: DataCheck) -> Table:
    """Images by number of labels, by split."""
    splits = found.splits[:MOST_SPLITS]
    grid = Table(box=box.SIMPLE, padding=(0, 1))
    grid.add_column("images with so many labels")
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


def cost_table(found: DataCheck) -> Table:
    """What a run does."""
    grid = Table("a run", "does", box=box.SIMPLE, padding=(0, 1))
    for name, amount in found.costs:
        grid.add_row(name, amount)
    return grid
