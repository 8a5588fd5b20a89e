"""Commands about images: check them, or generate them (demo)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError
from cam_pipeline.machine.distributed import is_first

if TYPE_CHECKING:
    from cam_pipeline.config import Config
    from cam_pipeline.pipeline import Pipeline

DEMO_IMAGES = (500, 120)
"""Training and validation images of the demo."""


@click.command("check-data")
@click.option("--all", "every", is_flag=True, help="List all mistakes, not only the first ten of each kind.")
@run_options(force=False)
def check_data(options: Options, every: bool) -> None:
    """Open every image and mask and build both networks; list mistakes, contents and the cost of a run.

    Nothing is written. If nothing is wrong, some steps are tried, to tell how long a run takes on this machine.

    Exit code 2 if a run would fail, or evaluate after it because of a mask. A split without masks is a warning.

    Example: cam-pipeline check-data -c my.toml
    """
    from cam_pipeline.data.check.data_set import check_data
    from cam_pipeline.data.check.problems import AllProblems
    from cam_pipeline.machine.parallel import worker_count
    from cam_pipeline.report.terminal import show_check

    config = options.load()
    problems = AllProblems()
    found = check_data(config, worker_count(config.run), problems)
    table, times, device = found.table, dict[str, float](), ""
    if found.classes and table:  # else the table cannot be read, which is to be told at once
        from cam_pipeline.training.dry_run import check_networks  # late: it imports torch

        check_networks(config, problems)
        found = replace(found, errors=tuple(problems.errors), warnings=tuple(problems.warnings))
        if not found.errors and not options.quiet:
            from cam_pipeline.training.forecast import forecast

            times, device = forecast(config, table)
    show_check(found, every, options.quiet, times, device)
    if found.errors:
        count = len(found.errors)
        mistakes = f"{count:,} mistake{'' if count == 1 else 's'}"
        raise UserError(f"{mistakes} in the data or the config, see above; a run would fail")


def predict_new(pipeline: "Pipeline", root: Path) -> Path:
    """Predict the validation images of the demo into its run folder; gives the folder."""
    from cam_pipeline.prediction.image_files import find_images
    from cam_pipeline.report.prediction_run import predict_with

    folder = pipeline.folder / "predictions"
    files = find_images([str(root / "images" / "val*")], folder)
    predict_with(pipeline.config, files, folder, scales=(1.0,), flip=False, crf=False, overlays=True, force=False)
    return folder


def draw_scribbles(config: "Config", root: Path) -> None:
    """Draw scribbles of the demo's training images into the folder that the config names, if it names one."""
    from cam_pipeline.data.readers import load_table
    from cam_pipeline.machine.parallel import worker_count
    from cam_pipeline.report.scribbles import Manner, make_marks

    if config.data.scribbles:
        table = load_table(config.data.model_copy(update={"root": root, "scribbles": ""}))
        folder = root / config.data.scribbles
        make_marks(table.split(config.data.train), table.classes, folder, Manner(), worker_count(config.run))


@click.command("demo")
@run_options(default_config="demo")
def demo(options: Options) -> None:
    """Generate an image set and run everything on it: minutes on two CPU cores.

    Others: -c demo-vit (a transformer), -c demo-scribbles (strokes in place of labels).

    Example: cam-pipeline demo --set output.dir=/tmp/demo
    """
    from cam_pipeline.config import load_config
    from cam_pipeline.data.demo.synthetic import generate
    from cam_pipeline.machine.interrupt import graceful_stop
    from cam_pipeline.report.run_report import evaluate_run
    from cam_pipeline.report.terminal import show

    config = load_config(options.config, options.overrides)
    root = config.folder / "data"
    if any(setting.partition("=")[0].strip() == "data.root" for setting in options.overrides):
        raise UserError(
            "demo generates its own images, so data.root cannot be set; for your images use cam-pipeline run"
        )
    options = replace(options, overrides=(*options.overrides, f"data.root={json.dumps(str(root))}"))
    if is_first():
        click.echo(f"Images: {root} (generated)")
        with graceful_stop():
            generate(root, train=DEMO_IMAGES[0], val=DEMO_IMAGES[1], seed=0)
            draw_scribbles(config, root)
    pipeline = options.pipeline()
    pipeline.run(pipeline.order(pipeline.finals()), force=options.force)
    if is_first():
        report = evaluate_run(pipeline, force=options.force)
        show(report)
        click.echo(f"Pictures: {report['sheet']}")
        with graceful_stop():
            folder = predict_new(pipeline, root)
        click.echo(f"Labels of new images, as cam-pipeline predict writes them: {folder}")
