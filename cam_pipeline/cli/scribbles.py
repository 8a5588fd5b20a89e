"""The command that makes scribbles or clicks from masks."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError

if TYPE_CHECKING:
    from cam_pipeline.report.scribbles import Made, Manner

logger = logging.getLogger(__name__)

SHARE = click.FloatRange(0, 1)


@click.command("make-scribbles")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the marks.",
)
@click.option("--split", metavar="NAME", help="Split whose images get marks; default: the one to train on.")
@click.option(
    "--style",
    type=click.Choice(["strokes", "s4", "clicks"]),
    default="strokes",
    help="strokes (default): along the middle of each region; s4: as in Scribbles4All; clicks: one in each region.",
)
@click.option(
    "--width", type=click.IntRange(1, 99), default=3, metavar="N", help="Width of a stroke, pixels; default 3."
)
@click.option("--keep", type=SHARE, default=0.9, metavar="SHARE", help="Central share of a stroke; default 0.9.")
@click.option(
    "--shrink", type=SHARE, default=1.0, metavar="SHARE", help="Share of that which is drawn, 0 a dot; default 1."
)
@click.option(
    "--min-area", type=click.IntRange(1), metavar="N", help="Pixels of the smallest region; default 20, for s4 80."
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Click at a random place of each region, not its middle."
)
@run_options()
def make_scribbles(
    options: Options,
    output: Path,
    split: str | None,
    style: str,
    width: int,
    keep: float,
    shrink: float,
    min_area: int | None,
    seed: int | None,
) -> None:
    """Make scribbles or clicks from masks, to try what they bring before people draw any.

    Writes for each image of the split that has a mask a PNG of class numbers (255: nobody said); or, for all of them,
    clicks.csv (image,x,y,class). Then set data.scribbles to the folder, or data.clicks to the file; the last line says
    how. The same masks give the same marks. What is there already is not made again; what a person has drawn is never
    replaced.

    Exit code 2 if a mask could not be used; the others are made.

    Example: cam-pipeline make-scribbles -c my.toml -o photos/scribbles
    """
    from cam_pipeline.data.readers import load_table
    from cam_pipeline.machine.interrupt import graceful_stop
    from cam_pipeline.machine.parallel import worker_count
    from cam_pipeline.report.scribbles import Manner, make_marks

    if seed is not None and style != "clicks":
        raise UserError(f"--seed places clicks, and --style is {style}: leave one of them out")
    if style == "clicks" and (width, keep, shrink) != (3, 0.9, 1.0):
        logger.warning("--width, --keep and --shrink have no effect on clicks")
    config = options.load()
    table = load_table(config.data.model_copy(update={"scribbles": "", "clicks": ""}))  # these may be still to be made
    manner = Manner(style, width, keep * shrink, min_area or (80 if style == "s4" else 20), seed)
    split = split or config.data.train
    samples = [sample for sample in table.split(split) if sample.mask is not None]
    if not samples:
        raise UserError(f"no image of split '{split}' has a mask, from which marks could be made; name another split")
    with graceful_stop():
        made, failed = make_marks(samples, table.classes, output, manner, worker_count(config.run), options.force)
    _tell(made, output, manner, config.data.root)
    if failed:
        raise UserError(f"{len(failed):,} of {len(samples):,} masks could not be used, see above")


def _tell(made: "dict[str, Made]", folder: Path, manner: "Manner", root: Path) -> None:
    """Say how much was made, what was left out, and what to set."""
    denied = sum(bool(one.denied) for one in made.values())
    if denied:
        logger.warning("%d images have masks of classes that their labels do not name: these get no marks", denied)
    share = sum(one.marked for one in made.values()) / max(sum(one.pixels for one in made.values()), 1)
    images = f"{len(made):,} image{'' if len(made) == 1 else 's'}"
    path = folder.resolve()
    path = path.relative_to(root.resolve()) if path.is_relative_to(root.resolve()) else path
    if manner.style == "clicks":
        clicks = sum(len(one.clicks) for one in made.values())
        click.echo(f"{clicks:,} clicks on {images}, as discs {share:.2%} of the pixels: {folder / 'clicks.csv'}")
        setting = f"data.clicks={path / 'clicks.csv'}"
    else:
        click.echo(f"Scribbles of {images}, {share:.2%} of the pixels: {folder}")
        setting = f"data.scribbles={path}"
    beside, alone = ["--set", setting], ["--set", "train_seg.supervision=scribbles"]
    click.echo(f"Beside image labels: {shlex.join(beside)}; alone: {shlex.join([*beside, *alone])}")
