"""Errors as one line and an exit code."""

import errno
import io
import sys
from typing import Any

import click

from cam_pipeline.errors import Interrupted, SaidByAnother, UserError, one_line
from cam_pipeline.machine.atomic import explain
from cam_pipeline.machine.interrupt import signals_as_ctrl_c
from cam_pipeline.machine.threads import wait_without_spinning

NO_MEMORY = (
    "too little memory; use fewer --workers, a smaller train_cls.batch_size, train_seg.batch_size or "
    "cam.batch_size, or a smaller cam.max_side, then start the same command again"
)

REPORT = "This should not happen: please report it, with the command and the output of `cam-pipeline doctor`."


def never_fail_to_print() -> None:
    """Escape letters that the terminal's encoding lacks, such as a Japanese class name in one that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Mistake(click.ClickException):
    """A user's mistake: one line, exit code 2 (click's own class has 1)."""

    exit_code = 2


class Commands(click.Group):
    """Sets the process up, and turns errors into one line and an exit code; the only place that does."""

    def main(self, *arguments: Any, **more: Any) -> Any:
        wait_without_spinning()
        never_fail_to_print()
        return super().main(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with signals_as_ctrl_c():
                return super().invoke(ctx)
        except SaidByAnother as error:
            ctx.exit(error.code)
        except UserError as error:
            raise Mistake(one_line(str(error))) from error
        except OSError as error:
            if error.errno is None:
                error.add_note(REPORT)
            if error.errno in (None, errno.EPIPE):  # click handles a closed pipe
                raise
            raise Mistake(one_line(explain(error))) from error
        except MemoryError as error:
            raise Mistake(NO_MEMORY) from error
        except (Interrupted, KeyboardInterrupt) as error:
            click.echo(
                f"Interrupted: {str(error) or 'stopped at once'}. The same command resumes from there.", err=True
            )
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            error.add_note(REPORT)  # Python shows it after the traceback
            raise
