"""The command line: parse, call, print. Nothing heavy is imported before a command runs, so that help is instant."""

import errno
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from cam_pipeline.errors import Interrupted, SaidByAnother, UserError, one_line
from cam_pipeline.machine.atomic import explain
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.machine.interrupt import sigterm_as_ctrl_c
from cam_pipeline.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from cam_pipeline.config import Config
    from cam_pipeline.data.check.data_set import DataCheck
    from cam_pipeline.pipeline import Pipeline

MAKE_CAMS = ("extract_cams", "refine_cams", "make_labels")
NO_MEMORY = (
    "the memory is not enough; use fewer --workers, a smaller train_cls.batch_size, train_seg.batch_size or "
    "cam.batch_size, or a smaller cam.max_side, then start the same command again"
)
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
        except SaidByAnother as error:
            ctx.exit(error.code)
        except UserError as error:
            raise Mistake(one_line(str(error))) from error
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # a closed pipe is click's to deal with
                raise
            raise Mistake(one_line(explain(error))) from error
        except MemoryError as error:
            raise Mistake(NO_MEMORY) from error
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
    quiet: bool = False

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
            command(Options(config, tuple(overrides), force, quiet), **more)

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
    from cam_pipeline.machine.progress import set_quiet

    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    if not is_first():  # what the first of several processes says is true of all
        quiet, level = True, logging.DEBUG if verbose else logging.ERROR
    set_quiet(quiet)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("cam_pipeline").setLevel(level)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cam-pipeline")
def main() -> None:
    """From image-level labels to pixel pseudo-labels and a segmenter.

    Every command takes a config, runs what is not current, and goes on where it was stopped.

    Example: cam-pipeline demo
    """


@main.command("check-data")
@click.option("--all", "every", is_flag=True, help="List all mistakes, not the first ten of each kind.")
@run_options(force=False)
def check_data(options: Options, every: bool) -> None:
    """Open every image and mask, build both networks; list what is wrong, what there is, what a run costs.

    Nothing is written.

    Exit code 2 when a run would fail, or evaluate after it at a mask. A split without any masks is a warning.

    Example: cam-pipeline check-data -c my.toml
    """
    from cam_pipeline.data.check.data_set import check_data
    from cam_pipeline.data.check.problems import AllProblems
    from cam_pipeline.machine.device import worker_count
    from cam_pipeline.training.dry_run import check_networks

    config, problems = options.load(), AllProblems()
    check_networks(config, problems)
    found = check_data(config, worker_count(config.run), problems)
    show_check(found, every, quiet=options.quiet)
    if found.errors:
        count = len(found.errors)
        mistakes = f"{count:,} mistake{'' if count == 1 else 's'}"
        raise UserError(f"{mistakes} in the data or the config, see above; a run would fail")


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
    if is_first():
        same = pipeline.folder / "config.toml" if options.overrides else options.config
        click.echo(f"Results are in {pipeline.folder}. Next: cam-pipeline evaluate -c {same}")


@main.command("status")
@run_options(force=False)
def status(options: Options) -> None:
    """Show for every stage whether its result is current, and if not, why.

    Example: cam-pipeline status -c my.toml
    """
    from rich.table import Table
    from rich.text import Text

    pipeline = options.pipeline()
    grid = Table("stage", "state", "why", "file")
    for name, state in pipeline.states(["train_seg"]).items():
        grid.add_row(name, state.kind, Text(state.reason), Text(str(pipeline.path(name))))
    console().print(grid)


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

    What can not be compared, for want of masks or because it is not current, is named. Pictures need no masks.

    Example: cam-pipeline evaluate -c my.toml --oracle
    """
    from cam_pipeline.stages.evaluate import evaluate_run

    pipeline = options.pipeline()
    report = evaluate_run(pipeline, force=options.force, split=split, every=every, oracle=oracle)
    if report["rows"]:
        show(report)
        show_classes(report)
        click.echo(f"Numbers: {pipeline.folder / 'evaluation.json'}")
    for line in report["left_out"]:
        click.echo(f"No figure of {one_line(line)}")
    click.echo(f"Pictures: {report['sheet']}")


@main.command("demo")
@run_options(default_config="demo")
def demo(options: Options) -> None:
    """Generate an image set and run everything on it: minutes on two CPU cores.

    Example: cam-pipeline demo --set output.dir=/tmp/demo
    """
    from cam_pipeline.data.demo.synthetic import generate
    from cam_pipeline.machine.interrupt import graceful_stop
    from cam_pipeline.stages.evaluate import evaluate_run

    config = options.load()
    root = config.folder / "data"
    if any(setting.partition("=")[0].strip() == "data.root" for setting in options.overrides):
        raise UserError(
            "demo generates its own images: data.root can not be set; your own images go to cam-pipeline run"
        )
    options = replace(options, overrides=(*options.overrides, f"data.root={json.dumps(str(root))}"))
    if is_first():
        click.echo(f"Images: {root} (generated)")
        with graceful_stop():
            generate(root, train=DEMO_IMAGES[0], val=DEMO_IMAGES[1], seed=0)
    pipeline = options.pipeline()
    pipeline.run(pipeline.order(["train_seg"]), force=options.force)
    if is_first():
        report = evaluate_run(pipeline, force=options.force)
        show(report)
        click.echo(f"Pictures: {report['sheet']}")


def console() -> "Console":
    """Where tables are printed: as wide as the terminal, and wide enough for them where there is none."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=max(120, terminal.width))


def show_check(found: "DataCheck", every: bool, quiet: bool) -> None:
    """Print what `check_data` found: the contents first, as what is wrong should stand where the eye is."""
    from cam_pipeline.report.data_tables import class_table, cost_table, number_table, problem_lines, size_lines

    if found.splits and not quiet:
        wide = console()
        wide.print(class_table(found), number_table(found))
        for line in size_lines(found.sizes):
            click.echo(line)
        wide.print(cost_table(found))
    for title, problems in (("WARNINGS", () if quiet else found.warnings), ("MISTAKES", found.errors)):
        if problems:
            click.echo(f"\n{title}")
        for indent, line in problem_lines(problems, every):
            click.echo(indent + one_line(line))
    if not found.errors and not quiet:
        click.echo("\nNo mistakes found.")


def show(report: Mapping[str, Any]) -> None:
    """Print an evaluation as a table, in percent."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

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
        compared = Text(f"{row['split']}, {row['images']} images")
        grid.add_row(row["map"], *shares, decided, background, compared, row["used"])
    console().print(grid)


def show_classes(report: Mapping[str, Any]) -> None:
    """Print the IoU of every class for every map, in percent, and its mean over frequent and rare classes.

    Groups of one or two classes would only say the same again.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def percent(values: list[float | None]) -> list[str]:
        return ["-" if value is None else f"{100 * value:.1f}" for value in values]

    rows = report["rows"]
    grid = Table("IoU %", box=box.SIMPLE, padding=(0, 1))
    grid.add_column("images", justify="right")
    for row in rows:
        grid.add_column(row["map"], justify="right")
    for name in rows[0]["IoU"]:
        count = report["training_images"].get(name, "")
        grid.add_row(Text(name), str(count), *percent([row["IoU"][name] for row in rows]))
    grid.add_section()
    grid.caption = "images: of the training split."
    if min(map(len, report["groups"].values()), default=0) > 2:
        for group, names in report["groups"].items():
            counts = [report["training_images"][name] for name in names]
            means = percent([row["groups"][group] for row in rows])
            grid.add_row(f"{group} ({len(names)})", f"{min(counts)}-{max(counts)}", *means)
        grid.caption += " head, tail: the quarter of classes with most, with fewest"
    console().print(grid)


if __name__ == "__main__":
    main()
