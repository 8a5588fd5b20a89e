"""Stages: what describes one, and what it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from cam_pipeline.config import Config
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.table import Table

RECORDS = "cam_pipeline.stages.records"
"""Where all stages are listed. It is imported by name: the engine knows no stage."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a stage: the data set, and `results`, the files of the stages that it needs."""

    dataset: Dataset
    results: Mapping[str, Path]

    @property
    def table(self) -> Table:
        """All samples of the data set."""
        return self.dataset.table

    def __getitem__(self, stage: str) -> Path:
        return self.results[stage]


@dataclass(frozen=True)
class Earlier:
    """The result of a stage that is about to be replaced, made with the same settings from the same results.

    Only the data was other than now. `manifest` is the one beside the file.
    """

    path: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """The outputs of a stage: `path` is renamed to its final name when the stage returns.

    `folder` holds work in progress and outlives a kill; `logs` is kept. `fingerprint` is to be stored in the file.
    What a stage puts into `notes` (JSON) goes into the manifest. `earlier` is the result that this one replaces, if
    parts of it may be taken over.
    """

    path: Path
    logs: Path
    fingerprint: str
    notes: dict[str, Any] = field(default_factory=dict)
    earlier: Earlier | None = None

    @property
    def folder(self) -> Path:
        """The folder for part files and checkpoints."""
        return self.path.parent


@dataclass(frozen=True)
class Stage:
    """One cached step.

    name      as in the run folder's manifests
    makes     file name of the result
    command   what a user types after `cam-pipeline` to make it
    run       makes the result
    params    config sections and keys that change the result
    ignores   keys in `params` that do not change the result
    needs     stages whose results it reads
    applies   whether a config asks for this stage; if not, nothing may need it
    final     whether it makes what a run is for: `run` makes it, and all that it needs
    data      digest of what it reads outside the run folder
    check     raises UserError if the stage would fail with this config; `run` calls it for later stages before the
              first one starts
    version   to be raised if the code computes something else
    shared    all processes of a run call `run`, not only the first
    divides   name of the batch size that the processes divide among them
    memory    name of the setting to lower if there is too little memory
    content   digest of what the result says, if files that say the same may differ in their bytes
    """

    name: str
    makes: str
    command: str
    run: Callable[[Config, Inputs, Output], None]
    params: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    needs: Callable[[Config], tuple[str, ...]] = lambda config: ()
    applies: Callable[[Config], bool] = lambda config: True
    final: Callable[[Config], bool] = lambda config: False
    data: Callable[[Config, Dataset], str] = lambda config, dataset: ""
    check: Callable[[Config], None] | None = None
    version: int = 1
    shared: bool = False
    divides: str = ""
    memory: str = ""
    content: Callable[[Path], str] | None = None


def load_stages() -> dict[str, Stage]:
    """All stages, in order, as `stages/records.py` lists them."""
    return {stage.name: stage for stage in import_module(RECORDS).STAGES}
