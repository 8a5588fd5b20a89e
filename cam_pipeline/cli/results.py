"""Commands about results: numbers and pictures."""

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import one_line


@click.command("evaluate")
@click.option(
    "--split",
    default="",
    help="Split to compare on; default: training split for labels, validation split for the segmenter.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, metavar="N", help="Use the first of every N images.")
@click.option("--oracle", is_flag=True, help="Add the CAM at the background score that is best on these masks.")
@run_options()
def evaluate(options: Options, split: str, every: int, oracle: bool) -> None:
    """Compare CAMs, pseudo-labels and the segmenter with masks; writes evaluation.json and a contact sheet.

    Lists what could not be compared, and why (no masks, or not current). Pictures need no masks.

    Example: cam-pipeline evaluate -c my.toml --oracle
    """
    pipeline = options.pipeline()
    from cam_pipeline.report.run_report import evaluate_run  # late: they import torch, and mistakes come first
    from cam_pipeline.report.terminal import show, show_classes

    report = evaluate_run(pipeline, force=options.force, split=split, every=every, oracle=oracle)
    if report["rows"]:
        show(report)
        show_classes(report)
        click.echo(f"Numbers: {pipeline.folder / 'evaluation.json'}")
    for line in report["left_out"]:
        click.echo(f"No figures for {one_line(line)}")
    click.echo(f"Pictures: {report['sheet']}")
