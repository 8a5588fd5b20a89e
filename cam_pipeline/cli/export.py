"""Trained networks and pseudo-labels in the formats of other programs."""

import shlex
from pathlib import Path

import click

from cam_pipeline.cli.options import Options, run_options
from cam_pipeline.errors import UserError

LABELS = ("png", "coco", "labelme", "cvat", "label-studio", "yolo")
"""Formats of labels (`export.formats`, which is imported late)."""


@click.command("export")
@click.option("--to", "target", required=True, type=click.Choice(["onnx", *LABELS]), help="Format of the files.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the files; default: export in the run folder.",
)
@click.option("--only", type=click.Choice(["segmenter", "classifier"]), help="onnx: write this network alone.")
@click.option("--split", metavar="NAME", help="Labels: of these images; default: the split to train on.")
@run_options(force=False)
def export(options: Options, target: str, output: Path | None, only: str | None, split: str | None) -> None:
    """Write the pseudo-labels for a labelling tool, or the trained networks as ONNX files.

    Labels: every pixel has one. Correct them in the tool, and set data.corrected to what it saves; docs/formats.md says
    how. The folder must be new or empty, as it may hold what people have corrected.

    onnx: segmenter.onnx gives the probabilities of all labels for every pixel, classifier.onnx those of the classes and
    their maps. Both take images of any size, without this package and without torch; docs/onnx.md shows a program.

    Example: cam-pipeline export -c my.toml --to labelme -o to-correct
    """
    if target in LABELS:
        if only:
            raise UserError(f"--only chooses a network, and --to is {target}: leave one of them out")
        _export_labels(options, target, output, split)
        return
    if split is not None:
        raise UserError("--split chooses images, and --to is onnx: leave one of them out")
    config = options.load()
    from cam_pipeline.export.onnx import export_onnx  # late: it imports torch, and mistakes come first

    for found in export_onnx(config, output, [only] if only else []):
        checked = (
            "not compared with torch's answer, as onnxruntime is not installed"
            if found.difference is None
            else f"differs from torch's answer by at most {found.difference:.1e}"
        )
        click.echo(f"{found.path}: {found.path.stat().st_size / 1e6:.1f} MB, {checked}")


def _export_labels(options: Options, target: str, output: Path | None, split: str | None) -> None:
    pipeline = options.pipeline()
    pipeline.ensure(pipeline.config.labels_stage)  # mistakes come before torch
    from cam_pipeline.export.of_run import export_labels
    from cam_pipeline.machine.interrupt import graceful_stop

    with graceful_stop():
        found = export_labels(pipeline, target, output, split or pipeline.config.data.train)
    click.echo(f"Labels of {found.images:,} image{'' if found.images == 1 else 's'}: {found.folder}")
    setting = shlex.join(["--set", f"data.corrected={found.folder.resolve()}"])
    click.echo(f"Keep what you have looked at, then: cam-pipeline run {options.same} {setting}")
