"""agreement.h5: how far merged networks agree about the cells of an image."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.errors import DamagedFile
from cam_pipeline.store.hdf5 import Reader, Record, RecordStore, checked_shape, read_record


class AgreementStore(RecordStore):
    """Reads agreement.h5."""

    kind = "agreement"

    def read(self, name: str) -> NDArray[np.uint8]:
        """(h, w): the agreement times 255, on a grid that covers the image. Raises UserError for an unknown name."""
        found: NDArray[np.uint8] = read_record(self.file, ["agreement"], name).arrays["agreement"]
        where = f"{self.file.filename} at image {name}"
        checked_shape(where, found, None, None)
        if found.dtype != np.uint8:
            raise DamagedFile(f"{where} has an agreement of another kind; make it again with --force")
        return found


def agreement_record(name: str, agreement: Tensor) -> Record:
    """The record that `read` gives back: agreement (h, w) in 0..1, at a resolution of 1/255."""
    return Record(name, {"agreement": (255 * agreement).round().byte().numpy()})


class AgreementReader(Reader[AgreementStore]):
    """The agreement about the i-th name, by a call."""

    kind = AgreementStore

    def __call__(self, index: int) -> NDArray[np.uint8]:
        return self.opened().read(self.names[index])
