"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

import json
import logging
from collections.abc import Generator, Sequence
from pathlib import Path

from cam_pipeline.config import Config, RefineSettings, to_toml
from cam_pipeline.data.readers import load_table
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.crf_backend import crf_backend
from cam_pipeline.machine.parallel import Workers, worker_count
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.background import settled
from cam_pipeline.refinement.choice import check_masks_to_choose_by
from cam_pipeline.refinement.in_batches import refined_records_on
from cam_pipeline.refinement.in_workers import refined_records
from cam_pipeline.refinement.scores import CPU, placed, reduction
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64


def refine_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write scores for every CAM: background score, local refinement, dense CRF.

    On a GPU whole batches are refined in this process, else single images in worker processes.
    """
    classes = inputs.table.classes
    samples = {sample.id: sample for sample in inputs.table.split(*config.cam.splits)}
    count = worker_count(config.run)
    settings, device = placed(config.refine, config.run)
    with (
        CamStore.open(inputs[settings.maps_from]) as cams,
        Workers(config.run.backend, count) if device == CPU else Workers("sequential", 1) as workers,
    ):
        settings = settled(settings, workers, cams, [*samples.values()], 1 + len(classes), output.folder, device)
        attributes = artefact_attributes(
            classes, output.fingerprint, to_toml(config), background=settings.background_score
        )
        writer = PartWriter(output.path, "scores", attributes, in_chunks(cams.names, IMAGES_PER_PART))
        if settings.crf:
            output.notes["crf_backend"] = _backends(settings, writer, output.folder)

        def make(number: int) -> Generator[Record, None, None]:
            maps = [*map(cams.read, writer.chunks[number])]
            _tell_of_large_images(maps, settings)
            if device == CPU:
                return refined_records(workers, maps, samples, settings)
            return refined_records_on(device, maps, samples, settings, count)

        write_parts("refine_cams", writer, make)
        writer.join(cams.names)


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


def _tell_of_large_images(cams: Sequence[StoredCam], settings: RefineSettings) -> None:
    large = [cam.name for cam in cams if reduction(cam.size, settings) < 1]
    if large and settings.refines:
        more = f"more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("refine_cams: %d images, the first %s, have %s", len(large), large[0], more)
