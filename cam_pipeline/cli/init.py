"""The command that looks at a folder of images and writes a first config."""

import csv
import io
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cam_pipeline.errors import UserError

if TYPE_CHECKING:
    from cam_pipeline.data.layout import Layout
    from cam_pipeline.data.table import Table

FORMATS = ("csv", "coco", "voc", "labelme", "folders")
"""In the order in which `data.layout` takes them, if a folder has several layouts."""
SHOWN = 8
"""Number of classes that are named."""


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "-o", "--output", default="my.toml", type=click.Path(path_type=Path), metavar="FILE", help="Config; my.toml."
)
@click.option("--format", "forced", type=click.Choice(FORMATS), help="Take this layout, if there are several.")
def init(folder: Path, output: Path, forced: str | None) -> None:
    """Look at a folder of images and write a config for it, with a reason beside every setting.

    Tells which layout the folder has: a table, COCO, PASCAL VOC, Labelme's files, or a folder for each class. Sizes,
    batch and epochs come from the images and from this machine. Nothing is overwritten; images are not changed.

    Example: cam-pipeline init photos -o my.toml
    """
    from cam_pipeline.config import DataSettings
    from cam_pipeline.data.check.problems import AllProblems
    from cam_pipeline.data.layout import layouts
    from cam_pipeline.data.readers import load_table
    from cam_pipeline.machine.atomic import write_text
    from cam_pipeline.report.new_config import choose_backbone, config_text, contents, this_machine

    if output.suffix != ".toml":
        raise UserError(f"{output} is no name of a config; let it end in .toml")
    table_file = output.with_suffix(".csv")
    _refuse_existing(output)
    found = layouts(folder)
    layout = _taken(found, forced, folder)
    if layout.format == "labelme":
        _refuse_existing(table_file)
        name = Path(os.path.relpath(table_file.resolve(), layout.root.resolve())).as_posix()
        layout = replace(layout, data={**layout.data, "table": name})
        write_text(table_file, _table_text(layout.rows))
    try:
        settings = DataSettings.model_validate({**layout.data, "root": layout.root})
        problems = AllProblems()
        table = load_table(settings, problems)
        counted = contents(table, settings.train)
    except UserError:
        if layout.format == "labelme":
            table_file.unlink()
        raise
    machine = this_machine()
    backbone = choose_backbone(machine)
    said = list(_said(layout, table, counted.size, found))
    command = shlex.join(["cam-pipeline", "init", str(folder), "-o", str(output)])
    write_text(output, config_text(layout, layout.root, counted, machine, backbone, command, said))
    for line in said:
        click.echo(line)
    if layout.format == "labelme":
        click.echo(f"Labels of the images, from their shapes: {table_file}")
    if backbone.remedy:
        click.echo(f"Weights: {backbone.why}. Better: {backbone.remedy}.")
    else:
        click.echo(f"Weights: {backbone.name}: {backbone.why}.")
    if problems.errors:
        click.echo(f"Mistakes in the data: {len(problems.errors):,}; check-data lists them.")
    same = shlex.join(["-c", str(output)])
    click.echo(f"Config: {output}. Next: cam-pipeline check-data {same}; then cam-pipeline run {same}")


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} is there already, and is not overwritten; give another name with -o")


def _taken(found: "list[Layout]", forced: str | None, folder: Path) -> "Layout":
    """The layout to take. Raises UserError if another is asked for than there is."""
    for layout in found:
        if forced in (None, layout.format):
            return layout
    names = ", ".join(layout.format for layout in found)
    raise UserError(f"--format {forced}: {folder} does not have this layout; it has: {names}")


def _said(layout: "Layout", table: "Table", size: tuple[int, int], found: "list[Layout]") -> Iterator[str]:
    """What was found and taken, in lines."""
    yield f"Layout: {layout.format}, as {layout.why}."
    for other in found:
        if other.format != layout.format:
            yield f"It could also be {other.format}, as {other.why}; --format {other.format} takes that."
    samples = table.samples
    splits = Counter(sample.split for sample in samples)
    named = ", ".join(f"{count:,} in '{split}'" for split, count in splits.items())
    yield f"Images: {len(samples):,} ({named}), about {size[1]} x {size[0]} pixels."
    more = f" and {len(table.classes) - SHOWN} more" if len(table.classes) > SHOWN else ""
    yield f"Classes: {len(table.classes)}: {', '.join(table.classes[:SHOWN])}{more}."
    beside = {
        "masks": sum(sample.mask is not None for sample in samples),
        "clicks": sum(bool(sample.clicks) for sample in samples),
        "scribbles": sum(sample.scribble is not None for sample in samples),
    }
    marked = [f"{kind} of {count:,} images" for kind, count in beside.items() if count]
    yield f"Beside them: {', '.join(marked) or 'no masks, clicks or scribbles'}."
    for note in layout.notes:
        yield f"Not used: {note}."


def _table_text(rows: tuple[tuple[str, str, str], ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "labels", "split"), *rows])
    return text.getvalue()
