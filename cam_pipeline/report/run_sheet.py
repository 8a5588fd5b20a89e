"""The contact sheet of a run: what each step made of a few images, side by side."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cam_pipeline.assembly.segmenter import load_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.machine.device import pick_device
from cam_pipeline.models.placing import place
from cam_pipeline.prediction.label_maps import predict_labels
from cam_pipeline.refinement.scores import class_scores
from cam_pipeline.report.contact_sheet import SheetRow, contact_sheet
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore


def run_sheet(config: Config, table: Table, results: Mapping[str, Path], path: Path, rows: int = 8) -> None:
    """Draw image, CAM, pseudo-label, segmenter's prediction and mask of `rows` images spread over the first CAM split.

    `results` maps stage names to files; steps without a file are left out.
    """
    samples = table.split(config.cam.splits[0])
    chosen = [samples[index] for index in np.linspace(0, len(samples) - 1, min(rows, len(samples))).astype(int)]
    predictions = {}
    if "train_seg" in results:
        segmenter = load_segmenter(config.segmenter, results["train_seg"], table.classes)
        place(segmenter, pick_device(config.run))
        predictions = {sample.id: labels.numpy() for sample, labels in predict_labels(segmenter, chosen, config)}
    with ExitStack() as opened:
        cams = labels = None
        if config.refine.maps_from in results:
            cams = opened.enter_context(CamStore.open(results[config.refine.maps_from]))
        if "make_labels" in results:
            labels = opened.enter_context(LabelStore.open(results["make_labels"]))

        def row(sample: Sample) -> SheetRow:
            stored = cams.read(sample.id) if cams else None
            return SheetRow(
                name=sample.id,
                image=sample_image(sample),
                cam=class_scores(stored, config.refine)[0].numpy() if stored else None,
                class_ids=stored.class_ids if stored else (),
                pseudo_label=labels.read(sample.id) if labels else None,
                prediction=predictions.get(sample.id),
                truth=sample_mask(sample, len(table.classes)) if sample.mask else None,
            )

        contact_sheet([row(sample) for sample in chosen], ("background", *table.classes), path)
