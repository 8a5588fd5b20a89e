"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from joblib import delayed
from numpy.typing import NDArray

from cam_pipeline.config import Config, RefineSettings, to_toml
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.images import sample_image, sample_size
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample
from cam_pipeline.device import worker_count
from cam_pipeline.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.parallel import joblib_workers, results_of
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.progress import track
from cam_pipeline.refinement import reduction, refined_scores
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import PartWriter, artefact_attributes
from cam_pipeline.store.scores import score_record

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64


def refine_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write scores for every CAM: background score, then a dense CRF over the present classes in worker processes."""
    table, settings = load_table(config.data), config.refine
    samples = {sample.id: sample for sample in table.split(*config.cam.splits)}
    _tell_of_large_images(samples.values(), settings)
    workers = worker_count(config.run)
    with CamStore.open(inputs["extract_cams"]) as cams, joblib_workers(config.run.backend, workers) as parallel:
        chunks = [cams.names[start : start + IMAGES_PER_PART] for start in range(0, len(cams.names), IMAGES_PER_PART)]
        attributes = artefact_attributes(
            table.classes, output.fingerprint, to_toml(config), background=settings.background
        )
        writer = PartWriter(output.path, "scores", attributes, chunks)
        refine = delayed(partial(refined, settings=settings))
        with track("refine_cams", writer.total, done=writer.done) as progress:
            for number in writer.pending():
                stored = [cams.read(name) for name in chunks[number]]
                records = []
                with results_of(parallel, (refine(cam, samples[cam.name]) for cam in stored)) as results:
                    for cam, scores in zip(stored, results, strict=True):
                        raise_if_stopped()
                        records.append(score_record(cam.name, scores, cam.class_ids))
                        progress.advance()
                writer.write(number, records)
        writer.join(cams.names)


def _tell_of_large_images(samples: Iterable[Sample], settings: RefineSettings) -> None:
    large = [sample for sample in samples if reduction(sample_size(sample), settings) < 1]
    if large and (settings.crf or settings.kernel != "none"):
        more = f"have more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("refine_cams: %d images, the first %s, %s", len(large), large[0].id, more)


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
