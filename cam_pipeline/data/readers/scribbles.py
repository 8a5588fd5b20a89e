"""The file of an image's scribble: an indexed PNG, ScribbleSup's XML, also in a zip file, or Labelme's JSON."""

from dataclasses import replace
from pathlib import Path

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers.labelme import read_labelme
from cam_pipeline.data.strokes import ScribbleXml
from cam_pipeline.data.table import Sample
from cam_pipeline.data.zips import split_path
from cam_pipeline.errors import DataError


def with_scribble(sample: Sample, path: Path, classes: tuple[str, ...], problems: Problems, where: str = "") -> Sample:
    """The sample with the scribble in a file; `path` may lead into a zip file. Files of Labelme hold clicks, too.

    PNG and XML are read when they are needed, JSON at once; what is wrong in it is reported. `where` says what names
    the file.
    """
    file, member = split_path(path)
    if member or path.suffix.casefold() == ".xml":
        return replace(sample, scribble=ScribbleXml(file, classes, member))
    if path.suffix.casefold() != ".json" or not path.is_file():
        return replace(sample, scribble=path)
    try:
        strokes, clicks = read_labelme(path, classes, problems)
    except DataError as error:
        problems.report("scribble that cannot be used", f"{error} ({where})" if where else f"{error}{sample.named_in}")
        return sample
    said = strokes.strokes or clicks  # with clicks alone, too: the file says of what size the image was
    return replace(sample, scribble=strokes if said else None, clicks=(*sample.clicks, *clicks))
