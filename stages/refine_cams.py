"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from joblib import delayed
from numpy.typing import NDArray

from cam_pipeline.config import Config, RefineSettings, to_toml
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample
from cam_pipeline.device import worker_count
from cam_pipeline.errors import WorkerLost
from cam_pipeline.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.parallel import joblib_workers, results_of
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.progress import Tracker, track
from cam_pipeline.refinement import reduction, refined_scores
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import PartWriter, Record, artefact_attributes
from cam_pipeline.store.scores import score_record

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64
KILLED = "a worker process was killed, for lack of memory or by the CRF itself"


def refine_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write scores for every CAM: local refinement, background score, dense CRF, in worker processes."""
    table, settings = load_table(config.data), config.refine
    samples = {sample.id: sample for sample in table.split(*config.cam.splits)}
    with CamStore.open(inputs["extract_cams"]) as cams:
        chunks = [cams.names[start : start + IMAGES_PER_PART] for start in range(0, len(cams.names), IMAGES_PER_PART)]
        attributes = artefact_attributes(
            table.classes, output.fingerprint, to_toml(config), background=settings.background
        )
        writer = PartWriter(output.path, "scores", attributes, chunks)
        with track("refine_cams", writer.total, done=writer.done) as progress:
            while writer.pending():
                try:
                    _refine_parts(config, cams, samples, writer, progress)
                except WorkerLost:
                    if config.run.backend != "loky":
                        raise
                    number = writer.pending()[0]
                    logger.warning("refine_cams: %s; the next %d images go one by one", KILLED, len(chunks[number]))
                    stored = [cams.read(name) for name in chunks[number]]
                    writer.write(number, _one_by_one(stored, samples, settings))
                    progress.advance(writer.done - progress.done)
        writer.join(cams.names)


def _refine_parts(
    config: Config, cams: CamStore, samples: Mapping[str, Sample], writer: PartWriter, progress: Tracker
) -> None:
    """Make all parts that are left. Raises WorkerLost in the middle of one when a worker is killed."""
    settings = config.refine
    refine = delayed(partial(refined, settings=settings))
    with joblib_workers(config.run.backend, worker_count(config.run)) as parallel:
        for number in writer.pending():
            stored = [cams.read(name) for name in writer.chunks[number]]
            _tell_of_large_images(stored, settings)
            records = []
            with results_of(parallel, (refine(cam, samples[cam.name]) for cam in stored)) as results:
                for cam, scores in zip(stored, results, strict=True):
                    raise_if_stopped()
                    records.append(score_record(cam.name, scores, cam.class_ids))
                    progress.advance()
            writer.write(number, records)


def _one_by_one(stored: Sequence[StoredCam], samples: Mapping[str, Sample], settings: RefineSettings) -> list[Record]:
    """The scores of a part whose images killed a worker: one at a time, and those that do so alone unrefined."""
    records: list[Record] = []
    while len(records) < len(stored):
        try:
            with joblib_workers("loky", 2) as parallel:  # two, as joblib would take one for this very process
                for cam in stored[len(records) :]:
                    raise_if_stopped()
                    with results_of(parallel, [delayed(refined)(cam, samples[cam.name], settings)]) as results:
                        records.append(score_record(cam.name, next(results), cam.class_ids))
        except WorkerLost:
            cam = stored[len(records)]
            logger.warning("refine_cams: image %s: %s; it goes unrefined", cam.name, KILLED)
            plain = settings.model_copy(update={"crf": False, "kernel": "none"})  # in this process, which must not die
            scores = refined_scores(cam, partial(sample_image, samples[cam.name]), plain)
            records.append(score_record(cam.name, scores, cam.class_ids))
    return records


def _tell_of_large_images(stored: Sequence[StoredCam], settings: RefineSettings) -> None:
    large = [cam.name for cam in stored if reduction(cam.size, settings) < 1]
    if large and (settings.crf or settings.kernel != "none"):
        more = f"more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("refine_cams: %d images, the first %s, have %s", len(large), large[0], more)


def refined(cam: StoredCam, sample: Sample, settings: RefineSettings) -> NDArray[np.float32]:
    """Scores (1 + n, H, W) of one image; runs in a worker process."""
    ignore_in_worker()
    return refined_scores(cam, partial(sample_image, sample), settings)


def _data(config: Config, digests: FileDigests) -> str:
    table = load_table(config.data)
    return data_digest(table.classes, table.split(*config.cam.splits), digests, labels=False)


STAGE = Stage(
    name="refine_cams",
    makes="scores.h5",
    run=refine_cams,
    params=("refine",),
    needs=lambda config: ("extract_cams",),
    data=_data,
    version=2,
)
