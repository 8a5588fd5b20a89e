"""The data set of a run: its table, read once a command, and digests of its files."""

from collections.abc import Iterable
from functools import cached_property

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.names import check_names, check_negatives
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table


class Dataset:
    """The images and labels that `settings` describe. Nothing is read before it is asked for."""

    def __init__(self, settings: DataSettings, digests: FileDigests) -> None:
        self.settings = settings
        self.digests = digests
        self._problems = Problems()
        self._warned = False

    @cached_property
    def table(self) -> Table:
        """All samples. Raises DataError as `load_table`."""
        return load_table(self.settings, self._problems)

    def warn_once(self) -> None:
        """Log what is doubtful in the table, if it was read; nothing the second time."""
        if "table" in vars(self) and not self._warned:
            self._warned = True
            check_names(self.table, self.settings, self._problems)
            check_negatives(self.table, self.settings, self._problems)
            self._problems.log_warnings()

    def digest(
        self, samples: Iterable[Sample], *, labels: bool = True, masks: bool = False, marks: bool = False
    ) -> str:
        """One digest over class names and samples, see `data_digest`."""
        return data_digest(self.table.classes, samples, self.digests, labels=labels, masks=masks, marks=marks)
