"""Trained networks in the formats of other programs."""

from pathlib import Path

import click

from cam_pipeline.cli.options import Options, run_options


@click.command("export")
@click.option("--to", "target", required=True, type=click.Choice(["onnx"]), help="Format of the files.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the files; default: export in the run folder.",
)
@click.option("--only", type=click.Choice(["segmenter", "classifier"]), help="Write this network alone.")
@run_options(force=False)
def export(options: Options, target: str, output: Path | None, only: str | None) -> None:
    """Write the trained networks as ONNX files, which run without this package and without torch.

    segmenter.onnx gives the probabilities of all labels for every pixel, classifier.onnx those of the classes and
    their maps. Both take images of any size. docs/onnx.md shows a program that uses them.

    Example: cam-pipeline export -c my.toml --to onnx -o models
    """
    config = options.load()
    from cam_pipeline.export.onnx import export_onnx  # late: it imports torch, and mistakes come first

    for found in export_onnx(config, output, [only] if only else []):
        checked = (
            "not compared with torch's answer, as onnxruntime is not installed"
            if found.difference is None
            else f"differs from torch's answer by at most {found.difference:.1e}"
        )
        click.echo(f"{found.path}: {found.path.stat().st_size / 1e6:.1f} MB, {checked}")
