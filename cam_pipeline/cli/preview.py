"""The command that shows a few labels before a long run."""

import click

from cam_pipeline.cli.options import Options, run_options


@click.command("preview")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="First train for N epochs, for this alone.")
@click.option("--images", type=click.IntRange(1, 100), default=10, metavar="N", help="Number of images; default 10.")
@run_options(force=False)
def preview(options: Options, epochs: int | None, images: int) -> None:
    """Draw the labels of a few images at five background scores, side by side: preview.png in the run folder.

    Needs the classifier of train-cls; with --epochs one is trained for this picture and thrown away. Results of the
    run are not changed.

    Example: cam-pipeline preview -c my.toml --epochs 1
    """
    pipeline = options.pipeline()
    from cam_pipeline.machine.interrupt import graceful_stop
    from cam_pipeline.report.preview import preview as draw  # late: it imports torch, and mistakes come first

    path = pipeline.folder / "preview.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with graceful_stop():
        draw(pipeline, path, images, epochs)
    click.echo(f"Picture: {path}. Set refine.background to the score that you like best")
