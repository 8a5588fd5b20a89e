"""The command line: parse, call, print. Nothing heavy is imported before a command runs, so that help is instant."""

import click

from cam_pipeline.cli.data import check_data, demo
from cam_pipeline.cli.doctor import doctor
from cam_pipeline.cli.errors import Commands
from cam_pipeline.cli.export import export
from cam_pipeline.cli.init import init
from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.cli.predict import predict
from cam_pipeline.cli.preview import preview
from cam_pipeline.cli.report import report
from cam_pipeline.cli.results import evaluate
from cam_pipeline.cli.scribbles import make_scribbles
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.version import __version__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cam-pipeline")
def main() -> None:
    """From image-level labels to pixel pseudo-labels and a segmenter.

    Every command takes a config, runs what is not current, and resumes where it was stopped.

    Example: cam-pipeline demo
    """


@main.command("train-cls")
@run_options()
def train_cls(options: Options) -> None:
    """Train the image classifier.

    Example: cam-pipeline train-cls -c my.toml --set train_cls.epochs=5
    """
    options.pipeline().run(["train_cls"], force=options.force)


@main.command("make-cams")
@run_options()
def make_cams(options: Options) -> None:
    """Extract CAMs, refine them (CRF) and write pseudo_labels.h5.

    Example: cam-pipeline make-cams -c my.toml --set refine.background=0.3
    """
    pipeline = options.pipeline()
    pipeline.run(pipeline.made_by("make-cams"), force=options.force)


@main.command("train-e2e")
@run_options()
def train_e2e(options: Options) -> None:
    """Train one network that classifies and segments (TSCD), and write its labels: e2e_labels.h5.

    From image labels alone, in place of train-cls, make-cams and train-seg. predict.network = "train_e2e" makes it the
    segmenter of the run, train_seg.labels_from = "train_e2e" the teacher of train-seg.

    Example: cam-pipeline train-e2e -c my.toml --set predict.network=train_e2e
    """
    pipeline = options.pipeline()
    pipeline.run(pipeline.made_by("train-e2e"), force=options.force)


@main.command("train-seg")
@run_options()
def train_seg(options: Options) -> None:
    """Train the segmenter on the pseudo-labels (or on masks, as a reference).

    Example: cam-pipeline train-seg -c my.toml --device cuda
    """
    options.pipeline().run(["train_seg"], force=options.force)


@main.command("run")
@run_options()
def run(options: Options) -> None:
    """Run every stage that is not current, in order.

    Example: cam-pipeline run -c my.toml --set data.root=photos
    """
    pipeline = options.pipeline()
    pipeline.run(pipeline.order(pipeline.finals()), force=options.force)
    if is_first():
        click.echo(f"Results are in {pipeline.folder}. Next: cam-pipeline evaluate {options.same}")


@main.command("status")
@run_options(force=False)
def status(options: Options) -> None:
    """Show for every stage whether its result is current, and if not, why.

    Example: cam-pipeline status -c my.toml
    """
    from rich.table import Table
    from rich.text import Text

    from cam_pipeline.report.console import console

    pipeline = options.pipeline()
    grid = Table("stage", "state", "why", "file")
    for name, state in pipeline.states(pipeline.shown()).items():
        grid.add_row(name, state.kind, Text(state.reason), Text(str(pipeline.path(name))))
    console().print(grid)


main.add_command(check_data)
main.add_command(demo)
main.add_command(doctor)
main.add_command(evaluate)
main.add_command(export)
main.add_command(init)
main.add_command(make_scribbles)
main.add_command(predict)
main.add_command(report)
main.add_command(preview)
