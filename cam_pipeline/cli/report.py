"""The command that writes a run's report."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError

if TYPE_CHECKING:
    from cam_pipeline.pipeline.state import Results


@click.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File for the page; default: report.html in the run folder.",
)
@run_options(needs_config=False, force=False)
def report(options: Options, runs: tuple[str, ...], output: Path | None) -> None:
    """Write one HTML page that tells of a run: settings, curves, doubtful labels and, with masks, how good it is.

    RUN is a run folder, in place of -c. The page opens from disk and needs no network.

    Example: cam-pipeline report -c my.toml
    """
    if len(runs) + bool(options.config) != 1:
        raise UserError("report: give one run, as -c FILE or as a run folder")
    found = _opened(runs[0]) if runs else options.pipeline()
    from cam_pipeline.report.html_report import write_report  # late: it imports torch, and mistakes come first

    click.echo(f"Report: {write_report(found, output)}")


def _opened(run: str) -> "Results":
    """The results in a run folder, with the settings that made them. Raises a UserError if it is none."""
    from cam_pipeline.api import run_config  # late: it imports torch
    from cam_pipeline.pipeline.state import Results

    config = run_config(Path(run), "auto")
    return Results(config, same=shlex.join(("-c", f"{run}/config.toml")))
