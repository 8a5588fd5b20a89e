"""What names in the files of other tools mean: classes, and images of the data set."""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from cam_pipeline.data.names import clean, is_ignored, label_of
from cam_pipeline.data.readers.clicks import form, names_of
from cam_pipeline.data.table import Sample, unknown_class
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX


def label_named(name: str, classes: Sequence[str], where: str) -> int:
    """The label of a class name, 0 for the background, 255 for `__ignore__`. Raises DataError if there is none."""
    name = clean(name)
    label = IGNORE_INDEX if is_ignored(name) else label_of(name, classes)
    if label is None:
        raise DataError(f"{where}: {unknown_class(name, classes)}")
    return label


class Images:
    """Finds samples by what other tools call them: an id or a path with more folders before it, or a file name."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.whole: dict[str, Sample] = {}
        self.loose: dict[str, Sample | None] = {}
        for sample in samples:
            of_id = PurePosixPath(sample.id)
            self.whole[form(sample.id)] = sample
            self.whole.setdefault(form(of_id.with_name(sample.image.name).as_posix()), sample)
            for name in names_of(sample):
                self.loose[name] = sample if self.loose.get(name, sample) is sample else None

    def find(self, name: str) -> Sample | None:
        """The sample of a name; None if there is none, or the name fits several.

        A path need not start where ids do (`JPEGImages/a.jpg`), but a folder that an id has must be in it.
        """
        parts = [part for part in form(name).split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if sample := self.whole.get("/".join(parts[start:])):
                return sample
        return self.loose.get("/".join(parts)) if len(parts) == 1 else None
