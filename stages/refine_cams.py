"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

import json
from pathlib import Path

from cam_pipeline.config import Config, RefineSettings, to_toml
from cam_pipeline.data.readers import load_table
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.crf_backend import crf_backend
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.background import settled
from cam_pipeline.refinement.choice import check_masks_to_choose_by
from cam_pipeline.refinement.in_parts import workers_for, write_scores
from cam_pipeline.refinement.scores import placed
from cam_pipeline.refinement.unchanged import background_before, made_of, unchanged
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks
from cam_pipeline.store.scores import MADE_OF

IMAGES_PER_PART = 64


def refine_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write scores for every CAM: background score, local refinement, dense CRF.

    Images that are as they were when an earlier result was made, marks included, keep their scores from there.
    On a GPU whole batches are refined in this process, else single images in worker processes.
    """
    classes = inputs.table.classes
    samples = {sample.id: sample for sample in inputs.table.split(*config.cam.splits)}
    digests = made_of(inputs.dataset, samples.values(), config.refine)
    earlier = output.earlier.path if output.earlier else None
    before = background_before(earlier, digests)
    settings, device = placed(config.refine, config.run)
    with CamStore.open(inputs[settings.maps_from]) as cams, workers_for(device, config.run) as workers:
        settings = settled(
            settings, workers, cams, [*samples.values()], 1 + len(classes), output.folder, device, before
        )
        attributes = artefact_attributes(
            classes, output.fingerprint, to_toml(config), background=settings.background_score
        )
        writer = PartWriter(output.path, "scores", attributes, in_chunks(cams.names, IMAGES_PER_PART))
        if settings.crf:
            output.notes["crf_backend"] = _backends(settings, writer, output.folder)
        if output.earlier and settings.crf and output.earlier.manifest.get("crf_backend") != settings.crf_backend:
            earlier = None
        same = unchanged(earlier, digests, settings.background_score)
        texts = {MADE_OF: [digests[name] for name in cams.names]}
        write_scores("refine_cams", writer, cams, samples, settings, config.run, workers, device, same, texts)


def check(config: Config) -> None:
    """Raise UserError if the CRF's backend is missing, or the score is to be chosen on masks that show no class."""
    if config.refine.crf and config.refine.crf_backend == "pydensecrf":
        crf_backend("pydensecrf", "cpu")
    if config.refine.background == "from-split":
        table = load_table(config.data)
        check_masks_to_choose_by(config.refine, table.split(*config.cam.splits), table.classes)


def _backends(settings: RefineSettings, writer: PartWriter, folder: Path) -> str:
    """The CRF's backend; if parts in `folder` are of another, as its run was stopped, both: "torch, pydensecrf"."""
    note = folder / "crf_backend.json"
    names = str(read_json(note).get("crf_backend", "")) if writer.finished else ""
    if not names or (writer.pending() and settings.crf_backend not in names):
        names = ", ".join(filter(None, [names, settings.crf_backend]))
    write_text(note, json.dumps({"crf_backend": names}))
    return names
