"""Scores -> pseudo-labels with an ignore band (pseudo_labels.h5); seconds, so thresholds are cheap to change."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cam_pipeline.config import Config, to_toml
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.labels import IGNORE_INDEX
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.refinement.labels import pseudo_labels
from cam_pipeline.store.hdf5 import PartWriter, Record, artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.scores import ScoreStore, StoredScores

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 256


def make_labels(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write labels and per-pixel confidence for every image that has scores; say which lost a class that they show."""
    seen, lost = 0, list[str]()
    with ScoreStore.open(inputs["refine_cams"]) as scores:
        chunks = [
            scores.names[start : start + IMAGES_PER_PART] for start in range(0, len(scores.names), IMAGES_PER_PART)
        ]
        classes = ("background", *scores.classes)
        attributes = artefact_attributes(classes, output.fingerprint, to_toml(config), ignore_index=IGNORE_INDEX)
        writer = PartWriter(output.path, "pseudo-labels", attributes, chunks)
        with track("make_labels", writer.total, done=writer.done) as progress:
            for number in writer.pending():
                raise_if_stopped()
                read = [scores.read(name) for name in chunks[number]]
                records = [labelled(stored, config) for stored in read]
                writer.write(number, records)
                seen += len(records)
                lost += [
                    stored.name for stored, record in zip(read, records, strict=True) if loses_class(stored, record)
                ]
                progress.advance(len(chunks[number]))
        writer.join(scores.names)
    if lost:
        what = "images have no pixel of a class that they show, the first"
        remedy = "a lower refine.background leaves more to the classes"
        logger.info("make_labels: %d of %d %s %s; %s", len(lost), seen, what, lost[0], remedy)


def loses_class(stored: StoredScores, record: Record) -> bool:
    """Whether the labels have no pixel of one of the image's classes."""
    return not all((record.arrays["labels"] == class_id).any() for class_id in stored.class_ids)


def labelled(stored: StoredScores, config: Config) -> Record:
    """Labels as `labels.undecided` says; the confidence is the best channel's score."""
    labels = pseudo_labels(stored, config.labels)
    confidence = np.rint(stored.scores.max(axis=0) * 255).astype(np.uint8)
    return label_record(stored.name, labels, confidence)


STAGE = Stage(
    name="make_labels",
    makes="pseudo_labels.h5",
    command="make-cams",
    run=make_labels,
    params=("labels",),
    needs=lambda config: ("refine_cams",),
)
