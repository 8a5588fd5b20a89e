"""The options that commands share, and how much they print."""

import json
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cam_pipeline.errors import one_line
from cam_pipeline.machine.distributed import is_first

if TYPE_CHECKING:
    from cam_pipeline.config import Config
    from cam_pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)

FEW = 5
"""Number of settings without effect that are named one by one."""


@dataclass(frozen=True)
class Options:
    """The options that every command shares."""

    config: str
    overrides: tuple[str, ...]
    force: bool = False
    quiet: bool = False
    given: tuple[str, ...] = ()

    @property
    def same(self) -> str:
        """The config and settings as they were given, quoted for a shell: for a command that is offered next."""
        return shlex.join(self.given or ("-c", self.config))

    def load(self) -> "Config":
        """The resolved config, without one the defaults; warns of given settings that have no effect."""
        from cam_pipeline.config import default_config, load_config

        config = load_config(self.config, self.overrides) if self.config else default_config(self.overrides)
        if is_first():
            warn_of(config.in_vain())
        return config

    def pipeline(self) -> "Pipeline":
        """The stages of the config; warns of a run folder that another config of that name has used."""
        from cam_pipeline.config import shipped_configs
        from cam_pipeline.pipeline import Pipeline, source_of

        config = self.load()
        last, source = source_of(config.folder), self.config
        if Path(source).is_file():  # a path from the folder, so that both can be moved or copied together
            source = os.path.relpath(Path(source).resolve(), config.folder.resolve())
        if source == "config.toml":  # the folder's own
            source = last
        if is_first() and last != source and Path(last).stem == Path(source).stem:
            before = os.path.normpath(config.folder / last)
            if Path(before).is_file() or last in shipped_configs():
                shared = "they replace each other's; set output.dir to keep both"
                logger.warning("%s holds results of %s, and this is %s: %s", config.folder, before, self.config, shared)
        return Pipeline(config, source=source, same=self.same)


def run_options(
    default_config: str | None = None, force: bool = True, needs_config: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The shared options; the command is called with one `Options`. Its config is "" if none is needed or given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def call(
            config: str,
            settings: tuple[str, ...],
            device: str | None,
            workers: int | None,
            verbose: bool,
            quiet: bool,
            force: bool = False,
            **more: Any,
        ) -> None:
            overrides = list(settings)
            overrides += [f"run.device={json.dumps(device)}"] if device is not None else []
            overrides += [f"run.workers={workers}"] if workers is not None else []
            given = [
                *(["-c", config] if config else []),
                *(word for setting in settings for word in ("--set", setting)),
            ]
            given += ["--device", device] if device is not None else []
            given += ["--workers", str(workers)] if workers is not None else []
            configure_output(verbose, quiet)
            command(Options(config, tuple(overrides), force, quiet, tuple(given)), **more)

        call.__doc__, call.__name__ = command.__doc__, command.__name__
        call.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        # click takes a default of None for a given value, so `required` would have no effect.
        given: dict[str, Any] = {"default": [default_config], "show_default": default_config} if default_config else {}
        decorators = [
            click.option("-c", "--config", required=needs_config and not default_config, metavar="FILE", **given,
                         multiple=True, callback=only_one, help="TOML file, or the name of a shipped config."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting."),
            click.option("--device", metavar="DEVICE", help="auto, cpu or cuda[:n]."),
            click.option("--workers", type=click.IntRange(min=0), metavar="N",
                         help="Worker processes; 0: one per usable core, at most 8."),
            click.option("-v", "--verbose", is_flag=True, help="Print more."),
            click.option("--quiet", is_flag=True, help="Print only what is wrong."),
        ]  # fmt: skip
        if force:
            decorators.append(click.option("--force", is_flag=True, help="Make it again even if it is current."))
        for option in reversed(decorators):
            call = option(call)
        return call

    return decorate


def only_one(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str:
    """The value of an option that is given once; "" without it.

    Raises click's error for a second one: the last would win silently.
    """
    if len(values) > 1:
        raise click.BadParameter(f"give one, not {' and '.join(values)}")
    return values[0] if values else ""


def warn_of(in_vain: Sequence[str]) -> None:
    """Warn of settings without effect: a line for each of the first FEW, then the number of the others."""
    for line in in_vain[:FEW]:
        logger.warning("%s", one_line(line))
    if len(in_vain) > FEW:
        logger.warning("and %d more settings have no effect", len(in_vain) - FEW)


def configure_output(verbose: bool, quiet: bool) -> None:
    """Send log lines to stderr at the level asked for."""
    from cam_pipeline.machine.progress import set_quiet

    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    if not is_first():  # the first process speaks for all
        quiet = True
        level = logging.DEBUG if verbose else logging.ERROR
    set_quiet(quiet)
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")  # ours has the remedy
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("cam_pipeline").setLevel(level)
