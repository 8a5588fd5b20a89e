"""Scores -> pseudo-labels with an ignore band (pseudo_labels.h5); seconds, so thresholds are cheap to change."""

import logging
from collections.abc import Generator

import numpy as np

from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.marks import Marks, has_marks, sample_marks
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.labels import pseudo_labels, with_marks
from cam_pipeline.refinement.summary import LabelCounts, counted, shares_line, warnings
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.labels import LabelStore, label_record
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts
from cam_pipeline.store.scores import ScoreStore, StoredScores

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 256


def make_labels(config: Config, inputs: Inputs, output: Output) -> None:
    """Write labels and per-pixel confidence for every image that has scores; log what is striking about them.

    Pixels that people have marked keep what they say, and the origin of every pixel is noted beside.
    """
    marked = {one.id: one for one in inputs.table.split(*config.cam.splits) if has_marks(one)}
    with ScoreStore.open(inputs["refine_cams"]) as scores:
        classes = ("background", *scores.classes)
        attributes = artefact_attributes(classes, output.fingerprint, to_toml(config), ignore_index=IGNORE_INDEX)
        writer = PartWriter(output.path, "pseudo-labels", attributes, in_chunks(scores.names, IMAGES_PER_PART))
        seen: dict[str, LabelCounts] = {}

        def labels(number: int) -> Generator[Record, None, None]:
            for name in writer.chunks[number]:
                stored = scores.read(name)
                marks = sample_marks(marked[name], len(scores.classes)) if name in marked else None
                record = labelled(stored, config, marks)
                seen[name] = counted(name, stored.class_ids, record.arrays["labels"])
                yield record

        write_parts("make_labels", writer, labels)
        writer.join(scores.names)
        with LabelStore.open(output.path) as made:  # for the images of parts that an earlier run finished
            images = [
                seen[name] if name in seen else counted(name, scores.class_ids(name), made.read(name))
                for name in scores.names
            ]
    logger.info("make_labels: %s", shares_line(images, classes))
    for line in warnings(images, classes, config.labels.undecided):
        logger.warning("make_labels: %s", line)


def labelled(stored: StoredScores, config: Config, marks: Marks | None = None) -> Record:
    """Labels as `labels.undecided` says; the confidence is the best channel's score. What people say wins."""
    labels = pseudo_labels(stored, config.labels)
    confidence = np.rint(stored.scores.max(axis=0) * 255).astype(np.uint8)
    if marks is None:
        return label_record(stored.name, labels, confidence)
    labels, confidence = with_marks(stored.name, labels, confidence, marks)
    return label_record(stored.name, labels, confidence, marks.origin)
