"""Readers of common layouts into one table; docs/data.md shows each layout."""

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers.coco import read_coco
from cam_pipeline.data.readers.corrected import with_corrections
from cam_pipeline.data.readers.csv_table import read_csv
from cam_pipeline.data.readers.folders import read_folders
from cam_pipeline.data.readers.marks import with_marks
from cam_pipeline.data.readers.voc import VOC_CLASSES, read_voc
from cam_pipeline.data.table import Table
from cam_pipeline.errors import DataError

__all__ = ["VOC_CLASSES", "load_table"]

READERS = {"csv": read_csv, "voc": read_voc, "coco": read_coco, "folders": read_folders}


def load_table(settings: DataSettings, problems: Problems | None = None) -> Table:
    """Read the data set that the settings describe.

    Raises DataError, naming file and line, for the first mistake; `AllProblems` collects those after which reading can
    continue, and the table then lacks the samples that are wrong.
    """
    if not settings.root.is_dir():
        tried = "" if settings.root.is_absolute() else f" (looked for {settings.root.absolute()})"
        what = "a file, not a folder:" if settings.root.is_file() else "there is no folder"
        raise DataError(f"data.root: {what} {settings.root}{tried}; set it with --set data.root=FOLDER")
    problems = problems or Problems()
    table = READERS[settings.format](settings, problems)
    return with_marks(with_corrections(table, settings, problems), settings, problems)
