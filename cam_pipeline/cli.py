"""The command line: parse, call, print. Nothing heavy is imported before a command runs, so that help is instant."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cam_pipeline import __version__
from cam_pipeline.errors import Interrupted, UserError
from cam_pipeline.interrupt import sigterm_as_ctrl_c

if TYPE_CHECKING:
    from cam_pipeline.config import Config
    from cam_pipeline.pipeline import Pipeline

MAKE_CAMS = ("extract_cams", "refine_cams", "make_labels")
DEMO_IMAGES = (500, 120)
"""Training and validation images of the demo."""


class Mistake(click.ClickException):
    """A user's mistake: one line, exit code 2 (click's own class has 1)."""

    exit_code = 2


class Commands(click.Group):
    """Turns errors into one line and an exit code; the only place that does."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with sigterm_as_ctrl_c():
                return super().invoke(ctx)
        except UserError as error:
            raise Mistake(" ".join(line.strip() for line in str(error).splitlines())) from error
        except OSError as error:
            if error.errno is None or not error.filename:
                raise
            raise Mistake(f"{error.filename}: {error.strerror}") from error
        except (Interrupted, KeyboardInterrupt) as error:
            click.echo(
                f"Interrupted: {str(error) or 'stopped at once'}. The same command goes on from there.", err=True
            )
            ctx.exit(130)


@dataclass(frozen=True)
class Options:
    """The options that every command shares."""

    config: str
    overrides: tuple[str, ...]
    force: bool = False

    def load(self) -> "Config":
        """The resolved config."""
        from cam_pipeline.config import load_config

        return load_config(self.config, self.overrides)

    def pipeline(self) -> "Pipeline":
        """The stages of the config."""
        from cam_pipeline.pipeline import Pipeline

        return Pipeline(self.load())


def run_options(
    default_config: str | None = None, force: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The shared options; the command is called with one `Options`."""

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
            configure_output(verbose, quiet)
            command(Options(config, tuple(overrides), force), **more)

        call.__doc__, call.__name__ = command.__doc__, command.__name__
        call.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        # A default of None counts as given for click, so that `required` would be without effect.
        given: dict[str, Any] = {"default": default_config, "show_default": True} if default_config else {}
        decorators = [
            click.option("-c", "--config", required=not default_config, metavar="FILE", **given,
                         help="TOML file, or the name of a shipped config."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting."),
            click.option("--device", metavar="DEVICE", help="auto, cpu or cuda[:n]."),
            click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Worker processes; 0: one a core."),
            click.option("-v", "--verbose", is_flag=True, help="Say more."),
            click.option("--quiet", is_flag=True, help="Say only what is wrong."),
        ]  # fmt: skip
        if force:
            decorators.append(click.option("--force", is_flag=True, help="Make it anew even if it is current."))
        for option in reversed(decorators):
            call = option(call)
        return call

    return decorate


def configure_output(verbose: bool, quiet: bool) -> None:
    """Send log lines to stderr at the level asked for."""
    from cam_pipeline.progress import set_quiet

    set_quiet(quiet)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("cam_pipeline").setLevel(level)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cam-pipeline")
def main() -> None:
    """From image-level labels to pixel pseudo-labels and a segmenter.

    Every command takes a config, runs what is not current, and goes on where it was stopped.

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
    options.pipeline().run(MAKE_CAMS, force=options.force)


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
    pipeline.run(pipeline.order(["train_seg"]), force=options.force)
    click.echo(f"Results are in {pipeline.folder}. Next: cam-pipeline evaluate -c {options.config}")


@main.command("status")
@run_options(force=False)
def status(options: Options) -> None:
    """Show for every stage whether its result is current, and if not, why.

    Example: cam-pipeline status -c my.toml
    """
    from rich.console import Console
    from rich.table import Table

    pipeline = options.pipeline()
    grid = Table("stage", "state", "why", "file")
    for name, state in pipeline.states(["train_seg"]).items():
        grid.add_row(name, state.kind, state.reason, str(pipeline.path(name)))
    Console().print(grid)


@main.command("evaluate")
@click.option(
    "--split",
    default="",
    help="Split to compare on; default: training split for labels, validation split for the segmenter.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, metavar="N", help="Use the first of every N images.")
@click.option("--oracle", is_flag=True, help="Add the CAM at the background score that is best on these very masks.")
@run_options()
def evaluate(options: Options, split: str, every: int, oracle: bool) -> None:
    """Compare CAMs, pseudo-labels and the segmenter with masks; writes evaluation.json and a contact sheet.

    Example: cam-pipeline evaluate -c my.toml --oracle
    """
    from cam_pipeline.stages.evaluate import evaluate_run

    pipeline = options.pipeline()
    report = evaluate_run(pipeline, force=options.force, split=split, every=every, oracle=oracle)
    show(report)
    show_classes(report)
    click.echo(f"Numbers: {pipeline.folder / 'evaluation.json'}")
    if report["sheet"]:
        click.echo(f"Pictures: {report['sheet']}")


@main.command("demo")
@run_options(default_config="demo")
def demo(options: Options) -> None:
    """Generate an image set and run everything on it: minutes on two CPU cores.

    Example: cam-pipeline demo --set output.dir=/tmp/demo
    """
    from cam_pipeline.data.synthetic import generate
    from cam_pipeline.interrupt import graceful_stop
    from cam_pipeline.stages.evaluate import evaluate_run

    config = options.load()
    root = config.folder / "data"
    options = Options(options.config, (*options.overrides, f"data.root={json.dumps(str(root))}"), options.force)
    click.echo(f"Images: {root} (generated)")
    with graceful_stop():
        generate(root, train=DEMO_IMAGES[0], val=DEMO_IMAGES[1], seed=0)
    pipeline = options.pipeline()
    pipeline.run(pipeline.order(["train_seg"]), force=options.force)
    report = evaluate_run(pipeline, force=options.force)
    show(report)
    click.echo(f"Pictures: {report['sheet']}")


def show(report: Mapping[str, Any]) -> None:
    """Print an evaluation as a table, in percent."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    seeds = ", ".join(sorted({str(row["seed"]) for row in report["rows"]}))
    grid = Table(box=box.SIMPLE, padding=(0, 1), caption=f"percent of the complete label map; seed {seeds}")
    grid.add_column("map", no_wrap=True)
    for name in ("mIoU", "prec.", "recall", "FP", "FN", "decided", "backgr."):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("compared on")
    grid.add_column("learned from")
    for row in report["rows"]:
        shares = [
            f"{100 * row[key]:.1f}" for key in ("mIoU", "precision", "recall", "false_positive", "false_negative")
        ]
        decided = "" if row["coverage"] is None else f"{100 * row['coverage']:.1f}"
        background = "" if row["background"] is None else f"{row['background']:.2f}"
        grid.add_row(row["map"], *shares, decided, background, f"{row['split']}, {row['images']} images", row["used"])
    Console(width=None if Console().is_terminal else 120).print(grid)


def show_classes(report: Mapping[str, Any]) -> None:
    """Print the IoU of every class for every map, in percent."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table("IoU %", box=box.SIMPLE, padding=(0, 1))
    for row in report["rows"]:
        grid.add_column(row["map"], justify="right")
    for name in report["rows"][0]["IoU"]:
        values = [row["IoU"][name] for row in report["rows"]]
        grid.add_row(name, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    Console().print(grid)


if __name__ == "__main__":
    main()
