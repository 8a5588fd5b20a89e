"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from joblib import delayed
from torch import Tensor

from cam_pipeline.config import Config, RefineSettings, to_toml
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import WorkerLost
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.machine.device import worker_count
from cam_pipeline.machine.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.machine.parallel import joblib_workers, results_of
from cam_pipeline.machine.progress import Tracker, track
from cam_pipeline.pipeline import Output, Stage, read_json
from cam_pipeline.refinement.background import Measure, choose_background, images_to_choose_by
from cam_pipeline.refinement.scores import reduction, refined
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import PartWriter, artefact_attributes
from cam_pipeline.store.scores import StoredScores, score_record

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64
KILLED = "a worker process was killed, for lack of memory or by the CRF itself"


def refine_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write scores for every CAM: local refinement, background score, dense CRF, in worker processes."""
    table = load_table(config.data)
    samples = {sample.id: sample for sample in table.split(*config.cam.splits)}
    with CamStore.open(inputs["extract_cams"], config.refine.merge_with) as cams:
        settings = _settled(config, cams, list(samples.values()), 1 + len(table.classes), output)
        chunks = [cams.names[start : start + IMAGES_PER_PART] for start in range(0, len(cams.names), IMAGES_PER_PART)]
        attributes = artefact_attributes(
            table.classes, output.fingerprint, to_toml(config), background=settings.background_score
        )
        writer = PartWriter(output.path, "scores", attributes, chunks)
        with track("refine_cams", writer.total, done=writer.done) as progress:
            while writer.pending():
                try:
                    _refine_parts(config, settings, cams, samples, writer, progress)
                except WorkerLost:
                    if config.run.backend != "loky":
                        raise
                    number = writer.pending()[0]
                    logger.warning("refine_cams: %s; the next %d images go one by one", KILLED, len(chunks[number]))
                    stored = [cams.read(name) for name in chunks[number]]
                    writer.write(number, [score_record(one) for one in _one_by_one(stored, samples, settings)])
                    progress.advance(writer.done - progress.done)
        writer.join(cams.names)


def _settled(
    config: Config, cams: CamStore, samples: Sequence[Sample], num_labels: int, output: Output
) -> RefineSettings:
    """The settings with a number for the background score, chosen once and kept beside the parts."""
    settings, note = config.refine, output.folder / "background.json"
    if not isinstance(settings.background, str):
        return settings
    known = read_json(note).get("background")
    if not isinstance(known, float):
        known = _chosen(config, cams, samples, num_labels)
        write_text(note, json.dumps({"background": known}))
    logger.info("refine_cams: background score %.2f (%s)", known, settings.background)
    return settings.at(known)


def _chosen(config: Config, cams: CamStore, samples: Sequence[Sample], num_labels: int) -> float:
    """The background score chosen for these images. One that kills its worker has no say."""
    try:
        return _chosen_by(config, cams, samples, num_labels)
    except WorkerLost:
        if config.run.backend != "loky":
            raise
        logger.warning("refine_cams: %s; the background score is chosen without the images that do so", KILLED)
        settings, few = config.refine.at(0.5), images_to_choose_by(config.refine, samples)
        tasks = [partial(_refined, cams.read(sample.id), sample, settings) for sample in few]
        lost = {sample.id for sample, found in zip(few, _survived(tasks), strict=True) if found is None}
        return _chosen_by(config, cams, [sample for sample in samples if sample.id not in lost], num_labels)


def _chosen_by(config: Config, cams: CamStore, samples: Sequence[Sample], num_labels: int) -> float:
    with (
        joblib_workers(config.run.backend, worker_count(config.run)) as parallel,
        track("background score", 0, unit="images looked at") as progress,
    ):

        def total(measure: Measure, images: Sequence[Sample]) -> Tensor:
            progress.total += len(images)
            found = torch.zeros(())
            tasks = (delayed(_measured)(measure, cams.read(sample.id), sample) for sample in images)
            with results_of(parallel, tasks) as results:
                for value in results:
                    raise_if_stopped()
                    found = found + value
                    progress.advance()
            return found

        return choose_background(config.refine, samples, num_labels, total)


def _refine_parts(
    config: Config,
    settings: RefineSettings,
    cams: CamStore,
    samples: Mapping[str, Sample],
    writer: PartWriter,
    progress: Tracker,
) -> None:
    """Make all parts that are left. Raises WorkerLost in the middle of one when a worker is killed."""
    with joblib_workers(config.run.backend, worker_count(config.run)) as parallel:
        for number in writer.pending():
            stored = [cams.read(name) for name in writer.chunks[number]]
            _tell_of_large_images(stored, settings)
            records = []
            tasks = (delayed(_refined)(cam, samples[cam.name], settings) for cam in stored)
            with results_of(parallel, tasks) as results:
                for found in results:
                    raise_if_stopped()
                    records.append(score_record(found))
                    progress.advance()
            writer.write(number, records)


def _one_by_one(
    stored: Sequence[StoredCam], samples: Mapping[str, Sample], settings: RefineSettings
) -> Iterator[StoredScores]:
    """The scores of a part whose images killed a worker: one at a time, and those that do so alone unrefined."""
    tasks = [partial(_refined, cam, samples[cam.name], settings) for cam in stored]
    for cam, found in zip(stored, _survived(tasks), strict=True):
        if found is None:
            logger.warning("refine_cams: image %s: %s; it goes unrefined", cam.name, KILLED)
            plain = settings.model_copy(update={"crf": False, "kernel": "none"})  # in this process, which must not die
            found = refined(cam, partial(sample_image, samples[cam.name]), plain)
        yield found


def _survived(tasks: Sequence[Callable[[], StoredScores]]) -> Iterator[StoredScores | None]:
    """Results of tasks that run one at a time; None for one that kills its worker."""
    done = 0
    while done < len(tasks):
        try:
            with joblib_workers("loky", 2) as parallel:  # two, as joblib would take one for this very process
                for task in tasks[done:]:
                    raise_if_stopped()
                    with results_of(parallel, [delayed(task)()]) as results:
                        found = next(results)
                    done += 1
                    yield found
        except WorkerLost:
            done += 1
            yield None


def _tell_of_large_images(stored: Sequence[StoredCam], settings: RefineSettings) -> None:
    large = [cam.name for cam in stored if reduction(cam.size, settings) < 1]
    if large and settings.refines:
        more = f"more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("refine_cams: %d images, the first %s, have %s", len(large), large[0], more)


def _refined(cam: StoredCam, sample: Sample, settings: RefineSettings) -> StoredScores:
    """All that labels of one image can be made of; runs in a worker process."""
    ignore_in_worker()
    return refined(cam, partial(sample_image, sample), settings)


def _measured(measure: Measure, cam: StoredCam, sample: Sample) -> Tensor:
    """What a measure says of one image; runs in a worker process."""
    ignore_in_worker()
    return measure(cam, sample)


def _data(config: Config, digests: FileDigests) -> str:
    table, settings = load_table(config.data), config.refine
    digest = data_digest(table.classes, table.split(*config.cam.splits), digests, labels=False)
    digest = "-".join([digest, *digests.of_merged(settings.merge_with)])
    if settings.background != "from-split":
        return digest
    judges = images_to_choose_by(settings, table.split(*config.cam.splits))
    return f"{digest}-{data_digest(table.classes, judges, digests, labels=False, masks=True)}"


STAGE = Stage(
    name="refine_cams",
    makes="scores.h5",
    command="make-cams",
    run=refine_cams,
    params=("refine",),
    needs=lambda config: ("extract_cams",),
    data=_data,
    version=6,
)
