"""The command that segments new images."""

from pathlib import Path

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError


def scales(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    """Scales as `0.75,1,1.25`. Raises click's error for others than one to eight numbers from 0.1 to 4."""
    try:
        found = tuple(float(one) for one in value.split(","))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 8 or not all(0.1 <= one <= 4 for one in found):
        raise click.BadParameter(f"give one to eight numbers from 0.1 to 4, as in 0.75,1,1.25, not {value}")
    return found


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the label maps; it may hold some already.",
)
@click.option("--overlays", is_flag=True, help="Also draw the labels over each image.")
@click.option(
    "--scales", default="1", callback=scales, metavar="A,B", help="Sizes at which images are seen; default 1."
)
@click.option("--flip", is_flag=True, help="Look at mirror images, too.")
@click.option("--crf", is_flag=True, help="Refine the answer with the CRF of [refine].")
@run_options()
def predict(
    options: Options,
    images: tuple[str, ...],
    output: Path,
    overlays: bool,
    scales: tuple[float, ...],
    flip: bool,
    crf: bool,
) -> None:
    """Segment new images with the trained segmenter: files, folders, or patterns in quotes.

    Writes for each image a PNG of its size whose pixels are label numbers (0 is background), and predictions.csv, the
    least confident image first. What is there already is not made again. No data set is needed.

    Exit code 2 if an image could not be read; the others are made.

    Example: cam-pipeline predict photos/ -c my.toml -o labels --overlays
    """
    from cam_pipeline.machine.interrupt import graceful_stop
    from cam_pipeline.prediction.image_files import find_images

    config = options.load()
    files = find_images(images, output)
    from cam_pipeline.report.prediction_run import predict_with  # late: it imports torch, and mistakes come first

    with graceful_stop():
        found, failed = predict_with(
            config, files, output, scales=scales, flip=flip, crf=crf, overlays=overlays, force=options.force
        )
    click.echo(f"Label maps of {len(found):,} image{'' if len(found) == 1 else 's'}: {output}")
    click.echo(f"Table: {output / 'predictions.csv'}")
    if failed:
        count = len(failed)
        raise UserError(f"{count:,} of {len(files):,} images could not be read, see above")
