"""The command that writes a run's report."""

import shlex
from collections.abc import Sequence
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
    help="File for the page; default: report.html in the run folder, of two runs comparison.html in the second's.",
)
@run_options(needs_config=False, force=False)
def report(options: Options, runs: tuple[str, ...], output: Path | None) -> None:
    """Write one HTML page that tells of a run: settings, curves, doubtful labels and, with masks, how good it is.

    RUN is a run folder or a config, in place of -c. Two runs are put side by side: settings that differ, and figures of
    both. The page opens from disk and needs no network.

    Example: cam-pipeline report -c my.toml
    """
    count = len(runs) + bool(options.config)
    if count not in (1, 2):
        raise UserError(f"report takes one run or two, not {count}: give -c FILE, or run folders")
    folders = [run for run in runs if Path(run).is_dir()]
    if folders and options.overrides:
        raise UserError(
            f"{folders[0]} holds the settings that made it, so others have no effect: leave them out, or give -c"
        )
    found = ([options.pipeline()] if options.config else []) + [_opened(run, options.overrides) for run in runs]
    from cam_pipeline.report.html_report import write_report  # late: it imports torch, and mistakes come first
    from cam_pipeline.report.two_runs import write_comparison

    path = write_report(found[0], output) if count == 1 else write_comparison(found[0], found[1], output)
    click.echo(f"Report: {path}")


def _opened(run: str, overrides: Sequence[str]) -> "Results":
    """The results in a run folder, with the settings that made them, or those of a config. Raises UserErrors."""
    from cam_pipeline.pipeline.state import Results

    if Path(run).is_dir():
        from cam_pipeline.api import run_config  # late: it imports torch

        return Results(run_config(Path(run), "auto"), same=shlex.join(("-c", f"{run}/config.toml")))
    return Options(run, tuple(overrides)).pipeline()
