"""The contact sheet of a run: what people said and what each step made of a few images, side by side."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from cam_pipeline.assembly.single_stage import trained_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.marks import marks_to_draw
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.machine.device import pick_device
from cam_pipeline.models.placing import place
from cam_pipeline.prediction.label_maps import PresencesOf, predict_labels
from cam_pipeline.refinement.scores import class_scores
from cam_pipeline.report.choice import Candidate, Chosen, choose, named
from cam_pipeline.report.contact_sheet import SheetRow, contact_sheet
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore

WITH_CLASSIFIER = "segmenter: classes of each image by the classifier"
"""Behind the title of a sheet whose predictions the classifier has changed."""
LOOKED_AT = 1000
"""Number of images, spread over the split, among which the least confident are sought: some seconds."""


def run_sheet(
    config: Config,
    table: Table,
    results: Mapping[str, Path],
    path: Path,
    *,
    images: int | None = None,
    ids: Sequence[str] = (),
    presences: PresencesOf | None = None,
) -> None:
    """Draw image, CAM, pseudo-label, segmenter's prediction and mask of a few images; no step needs masks.

    `results` maps stage names to files; steps without a file are left out. The images are `images` of the first CAM
    split, or as many as `report.choice` takes, or those with the given `ids`, of any split. `presences` as in
    `evaluation.rows.evaluate`; the title says so. Raises DataError for an unknown id.
    """
    classes = ("background", *table.classes)
    with ExitStack() as opened:
        cams = labels = None
        if config.refine.maps_from in results:
            cams = opened.enter_context(CamStore.open(results[config.refine.maps_from]))
        made_by = config.labels_stage
        if made_by in results:
            labels = opened.enter_context(LabelStore.open(results[made_by]))
        if ids:
            samples = named(table, ids)
            chosen = Chosen(dict.fromkeys((sample.id for sample in samples), ""), "")
        else:
            split = config.cam.splits[0]
            chosen = choose(_candidates(table.split(split), cams, labels), classes, split, images)
            by_id = {sample.id: sample for sample in table.samples}
            samples = [by_id[name] for name in chosen.reasons]
        mapped = set(cams.names) if cams else set()
        labelled = set(labels.names) if labels else set()
        predictions = _predictions(config, table, results, samples, presences)

        def row(sample: Sample) -> SheetRow:
            stored = cams.read(sample.id) if cams and sample.id in mapped else None
            return SheetRow(
                name=sample.id,
                image=sample_image(sample),
                cam=class_scores(stored, config.refine)[0].numpy() if stored else None,
                class_ids=stored.class_ids if stored else sample.class_ids or (),
                pseudo_label=labels.read(sample.id) if labels and sample.id in labelled else None,
                prediction=predictions.get(sample.id),
                truth=sample_mask(sample, len(table.classes)) if sample.mask else None,
                note=chosen.reasons[sample.id],
                marks=marks_to_draw(sample, len(table.classes)),
            )

        title = "; ".join(filter(None, [chosen.title, WITH_CLASSIFIER if presences else ""]))
        contact_sheet([row(sample) for sample in samples], classes, path, title=title)


def _predictions(
    config: Config,
    table: Table,
    results: Mapping[str, Path],
    samples: Sequence[Sample],
    presences: PresencesOf | None,
) -> dict[str, np.ndarray]:
    """The segmenter's label maps (H, W) by image id; empty if there is no segmenter."""
    network = config.predict.network
    if network not in results:
        return {}
    segmenter = trained_segmenter(config, results[network], table.classes)
    place(segmenter, pick_device(config.run))
    shown = presences(samples) if presences else None
    return {sample.id: labels.numpy() for sample, labels in predict_labels(segmenter, samples, config, shown)}


def _candidates(samples: Sequence[Sample], cams: CamStore | None, labels: LabelStore | None) -> list[Candidate]:
    """All images of a split; the confidence of LOOKED_AT of them, if there are labels.

    The classes of an image that nobody labelled are those of its maps.
    """
    looked_at = set(np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int).tolist())
    mapped = set(cams.names) if cams else set()
    labelled = set(labels.names) if labels else set()

    def candidate(index: int, sample: Sample) -> Candidate:
        class_ids = sample.class_ids
        if class_ids is None and cams and sample.id in mapped and index in looked_at:
            class_ids = tuple(cams.read(sample.id).class_ids)
        known = labels is not None and sample.id in labelled and index in looked_at
        confidence = float(labels.confidence(sample.id).mean()) / 255 if labels and known else None
        return Candidate(sample.id, class_ids or (), confidence)

    return [candidate(index, sample) for index, sample in enumerate(samples)]
