"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

from collections.abc import Mapping
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
from cam_pipeline.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.parallel import joblib_workers, results_of
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.progress import track
from cam_pipeline.refinement import refined_scores
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import PartWriter, artefact_attributes
from cam_pipeline.store.scores import score_record

IMAGES_PER_PART = 64


def refine_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write scores for every CAM: background score, then a dense CRF over the present classes in worker processes."""
    table, settings = load_table(config.data), config.refine
    samples = {sample.id: sample for sample in table.split(*config.cam.splits)}
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
