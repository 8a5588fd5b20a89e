"""What a run would meet on this machine: all findings together, as a table or as JSON."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from cam_pipeline.config import Config
from cam_pipeline.errors import one_line
from cam_pipeline.report import findings
from cam_pipeline.report.console import console
from cam_pipeline.report.findings import Finding, Problem
from cam_pipeline.version import __version__

CHECKS: Mapping[str, Callable[[Config, bool], Finding]] = {
    "cam-pipeline": findings.of_program,
    "libraries": findings.of_libraries,
    "optional": findings.of_extras,
    "device": findings.of_device,
    "memory": findings.of_memory,
    "cores": findings.of_cores,
    "threads": findings.of_threads,
    "CRF": findings.of_crf,
    "shared memory": findings.of_shared_memory,
    "output": findings.of_output,
    "temporary": findings.of_temporary,
    "weights": findings.of_weights,
    "limits": findings.of_limits,
}
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "dim"}


def examine(
    config: Config, given: bool, checks: Mapping[str, Callable[[Config, bool], Finding]] = CHECKS
) -> dict[str, Finding]:
    """Every finding by name. `given`: the config is the user's, so that what it asks for would stop a run."""
    return {name: _private(_found(check, config, given)) for name, check in checks.items()}


def _found(check: Callable[[Config, bool], Finding], config: Config, given: bool) -> Finding:
    """What a check finds; "unknown" and the reason if it fails."""
    try:
        return check(config, given)
    except Exception as error:  # on a broken machine anything can fail
        return Finding(f"unknown ({one_line(str(error))[:200] or type(error).__name__})", known=False)


def _private(finding: Finding) -> Finding:
    """The finding without the name of the user's home."""
    problems = tuple(Problem(problem.state, _at_home(one_line(problem.line))) for problem in finding.problems)
    return replace(finding, found=_at_home(finding.found), problems=problems, values=_values_at_home(finding.values))


def _values_at_home(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _values_at_home(one) for key, one in value.items()}
    return _at_home(value) if isinstance(value, str) else value


def _at_home(text: str) -> str:
    """A text in which ~ stands for the home folder."""
    for home in {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}:
        if len(Path(home).parts) > 1:
            text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def would_fail(found: Mapping[str, Finding]) -> bool:
    """Whether something would stop a run."""
    return any(finding.state == "error" for finding in found.values())


def as_json(found: Mapping[str, Finding]) -> str:
    """All findings as a JSON object; docs/troubleshooting.md names its keys."""
    content = {
        name.lower().replace(" ", "_").replace("-", "_"): {
            "state": finding.state,
            "found": finding.found,
            "problems": [vars(problem) for problem in finding.problems],
            "values": finding.values,
        }
        for name, finding in found.items()
    }
    return json.dumps({"version": __version__, "would_fail": would_fail(found), "findings": content}, indent=2)


def show(found: Mapping[str, Finding], quiet: bool = False) -> None:
    """Print the findings as a table, then what is wrong; `quiet`: the latter alone."""
    if not quiet:
        grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, finding in found.items():
            grid.add_row(Text(finding.state, COLOURS[finding.state]), Text(name), Text(finding.found))
        console().print(grid)
        click.echo()
    problems = [problem for finding in found.values() for problem in finding.problems]
    for problem in sorted(problems, key=lambda problem: problem.state):  # errors first
        click.echo(f"{problem.state}: {problem.line}")
    if would_fail(found):
        click.echo("A run would fail.")
    elif not quiet:
        click.echo("Nothing found here would stop a run.")
