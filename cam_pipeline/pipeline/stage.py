"""What a stage is, and which there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from cam_pipeline.config import Config
from cam_pipeline.data.digest import FileDigests

STAGES = ("train_cls", "extract_cams", "refine_cams", "make_labels", "train_seg")
"""All stages, in order. Each is a file in `stages/`."""


@dataclass(frozen=True)
class Output:
    """Where a stage writes: `path` is renamed to its final place when the stage returns.

    `folder` holds work in progress and outlives a kill; `logs` is kept. `fingerprint` belongs into the file.
    """

    path: Path
    logs: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The folder for part files and checkpoints."""
        return self.path.parent


@dataclass(frozen=True)
class Stage:
    """One cached step.

    `command` is the command that makes it, as a user types it behind `cam-pipeline`.
    `params` are the config sections and keys that change the result, but for `ignores`, keys in them that only say how
    to work; `data` digests what the stage reads outside the run folder; `needs` names upstream stages. `version` is
    raised by hand when the code computes something else. Of several processes the first alone calls `run`, or all do
    where the stage is `shared`; `divides` names the batch size that they then divide among them. `memory` names the
    setting to lower when memory does not suffice. `check` raises UserError for a config that the stage would stop at;
    stages behind the first of a run are checked before it.
    """

    name: str
    makes: str
    command: str
    run: Callable[[Config, Mapping[str, Path], Output], None]
    params: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    needs: Callable[[Config], tuple[str, ...]] = lambda config: ()
    data: Callable[[Config, FileDigests], str] = lambda config, digests: ""
    check: Callable[[Config], None] | None = None
    version: int = 1
    shared: bool = False
    divides: str = ""
    memory: str = ""


def load_stages() -> dict[str, Stage]:
    """All stages, in order. Imports their modules (and with them torch)."""
    return {name: import_module(f"cam_pipeline.stages.{name}").STAGE for name in STAGES}
