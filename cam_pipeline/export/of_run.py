"""The pseudo-labels of a run in the format of a labelling tool."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cam_pipeline.data.images import UInt8
from cam_pipeline.data.marks import PSEUDO
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.export.formats import WRITERS
from cam_pipeline.export.label_maps import LabelMap, label_map, write_label_maps
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.scores import ScoreStore


@dataclass(frozen=True)
class Exported:
    """Where label maps lie, and how many there are."""

    folder: Path
    images: int


def export_labels(pipeline: Pipeline, target: str, output: Path | None, split: str) -> Exported:
    """Write the labels of a split; `target` is one of `formats.WRITERS`, None as folder: `export/<target>` of the run.

    Every pixel has a label, as `evaluate` compares them: one that `labels.undecided` leaves open gets the best channel
    of its scores. What people say stays, and so does 255 where a correction leaves a pixel open. Raises StageNotReady
    without current pseudo-labels, DataError for a split without any, and as `write_label_maps`.
    """
    single = pipeline.config.single_stage  # its labels leave nothing undecided
    labels = pipeline.ensure(pipeline.config.labels_stage)
    table, root = pipeline.dataset.table, pipeline.config.data.root
    samples = table.split(split)
    folder = output or pipeline.folder / "export" / target
    scores = nullcontext() if single else ScoreStore.open(pipeline.path("refine_cams"))
    with LabelStore.open(labels) as store, scores as stored:
        known = set(store.names)
        samples = [sample for sample in samples if sample.id in known]
        if not samples:
            raise DataError(f"{labels} has no labels of split '{split}'; add it to cam.splits, then make them again")
        maps = _maps(samples, store, stored, root, target)
        return Exported(folder, write_label_maps(WRITERS[target], maps, table.classes, folder))


def _maps(
    samples: list[Sample], labels: LabelStore, scores: ScoreStore | None, root: Path, target: str
) -> Iterator[LabelMap]:
    with track(f"export {target}", len(samples)) as progress:
        for sample in samples:
            yield label_map(sample, complete(sample.id, labels, scores), root)
            progress.advance()


def complete(name: str, labels: LabelStore, scores: ScoreStore | None) -> UInt8:
    """The labels (H, W) of an image, those that nobody has decided by the best channel of their scores, if any."""
    decided = labels.read(name)
    if scores is None:
        return decided
    undecided = (decided == IGNORE_INDEX) & (labels.origin(name) == PSEUDO)
    if not undecided.any():
        return decided
    found = scores.read(name)
    return np.where(undecided, complete_labels(found.scores, found.class_ids), decided)
