"""Commands about results: numbers and pictures."""

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError, one_line


@click.command("evaluate")
@click.option(
    "--split",
    default="",
    help="Split to compare on; default: training split for labels, validation split for the segmenter.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, metavar="N", help="Use the first of every N images.")
@click.option(
    "--oracle",
    is_flag=True,
    help="Add the CAM at the background score that is best on these masks, and the segmenter's answer with the classes "
    "that each image's labels name.",
)
@click.option(
    "--images",
    type=click.IntRange(1, 500),
    metavar="N",
    help="Images on the contact sheet; default: 8 to 40, so that each class is there twice.",
)
@click.option("--ids", multiple=True, metavar="A,B", help="Show these images on the contact sheet.")
@run_options()
def evaluate(options: Options, split: str, every: int, oracle: bool, images: int | None, ids: tuple[str, ...]) -> None:
    """Compare CAMs, pseudo-labels and the segmenter with masks; writes evaluation.json and a contact sheet.

    Lists what could not be compared, and why (no masks, or not current). Pictures need no masks.

    Example: cam-pipeline evaluate -c my.toml --images 20
    """
    if images is not None and ids:
        raise UserError("--ids names the images of the contact sheet, so --images has no effect: give one of the two")
    pipeline = options.pipeline()
    from cam_pipeline.report.run_report import evaluate_run  # late: they import torch, and mistakes come first
    from cam_pipeline.report.terminal import show, show_classes

    report = evaluate_run(
        pipeline, force=options.force, split=split, every=every, oracle=oracle, images=images, ids=ids
    )
    if report["rows"]:
        show(report)
        show_classes(report)
        click.echo(f"Numbers: {pipeline.folder / 'evaluation.json'}")
    for line in report["left_out"]:
        click.echo(f"No mIoU for {one_line(line)}")
    if report["next"]:
        click.echo(f"Not all results are current. {report['next']}")
    click.echo(f"Pictures: {report['sheet']}")
