"""The file of an image's scribble: an indexed PNG, or ScribbleSup's XML, also in a zip file."""

from dataclasses import replace
from pathlib import Path

from cam_pipeline.data.strokes import ScribbleXml
from cam_pipeline.data.table import Sample
from cam_pipeline.data.zips import split_path


def with_scribble(sample: Sample, path: Path, classes: tuple[str, ...]) -> Sample:
    """The sample with the scribble in a file, which is read when it is needed. `path` may lead into a zip file."""
    file, member = split_path(path)
    if member or path.suffix.casefold() == ".xml":
        return replace(sample, scribble=ScribbleXml(file, classes, member))
    return replace(sample, scribble=path)
