"""The data set of a run: its table, read once a command, and digests of its files."""

from collections.abc import Iterable
from functools import cached_property

from cam_pipeline.config import DataSettings
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table


class Dataset:
    """The images and labels that `settings` describe. Nothing is read before it is asked for."""

    def __init__(self, settings: DataSettings, digests: FileDigests) -> None:
        self.settings = settings
        self.digests = digests

    @cached_property
    def table(self) -> Table:
        """All samples. Raises DataError as `load_table`."""
        return load_table(self.settings)

    def digest(self, samples: Iterable[Sample], *, labels: bool = True, masks: bool = False) -> str:
        """One digest over class names and samples, see `data_digest`."""
        return data_digest(self.table.classes, samples, self.digests, labels=labels, masks=masks)
