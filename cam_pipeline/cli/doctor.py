"""The command about the machine itself."""

import faulthandler

import click

from cam_pipeline.cli.options import Options, run_options

STDERR = 2


@click.command("doctor")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object.")
@run_options(force=False, needs_config=False)
def doctor(options: Options, as_object: bool) -> None:
    """Say what would go wrong on this machine, and the remedy.

    Looks at versions, device, memory, cores, CRF, disk and weights; with a config, at what its run needs. Nothing is
    fetched, no result is touched. If you report a fault, send the output along.

    Exit code 2 if a run would fail; warnings do not count.

    Example: cam-pipeline doctor -c my.toml
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(STDERR)  # a torch that does not fit the machine ends Python without a word
    from cam_pipeline.report.doctor import as_json, examine, show, would_fail

    found = examine(options.load(), bool(options.given))
    if as_object:
        click.echo(as_json(found))
    else:
        show(found, options.quiet)
    if would_fail(found):
        click.get_current_context().exit(2)
