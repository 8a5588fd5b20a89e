"""Refinement of all images of a file of maps, part by part, where the settings say."""

import logging
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType

import torch

from cam_pipeline.config import RefineSettings, RunSettings
from cam_pipeline.data.marks import has_marks
from cam_pipeline.data.table import Sample
from cam_pipeline.machine.parallel import Workers, worker_count
from cam_pipeline.refinement.clicks import with_marks
from cam_pipeline.refinement.in_batches import refined_records_on
from cam_pipeline.refinement.in_workers import refined_records
from cam_pipeline.refinement.scores import CPU, reduction
from cam_pipeline.refinement.unchanged import Unchanged
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.hdf5 import Record
from cam_pipeline.store.parts import PartWriter, write_parts
from cam_pipeline.store.scores import ScoreStore

logger = logging.getLogger(__name__)


def workers_for(device: torch.device, run: RunSettings) -> Workers:
    """The processes that refine single images; on a GPU this one, which refines whole batches."""
    return Workers(run.backend, worker_count(run)) if device == CPU else Workers("sequential", 1)


def write_scores(
    title: str,
    writer: PartWriter,
    cams: CamStore,
    samples: Mapping[str, Sample],
    settings: RefineSettings,
    run: RunSettings,
    workers: Workers,
    device: torch.device,
    kept: Unchanged | None = None,
    texts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Write the scores of every image of `cams`; parts that an earlier run finished are kept.

    `samples` by id; `title` is the stage's name; `workers` are those of `workers_for(device, run)`. The scores of
    `kept` are copied. `texts`: of `PartWriter.join`.
    """
    same = kept or Unchanged()

    def make(number: int) -> Generator[Record, None, None]:
        names = writer.chunks[number]
        if not same.names.isdisjoint(names):
            with ScoreStore.open(same.path) as store:
                yield from (store.record(name) for name in names if name in same.names)
        changed = [name for name in names if name not in same.names]
        maps = [with_marks(cams.read(name), samples[name], len(cams.classes)) for name in changed]
        _tell_of_large_images(title, maps, settings)
        if device == CPU:
            yield from refined_records(workers, maps, samples, settings)
        else:
            yield from refined_records_on(device, maps, samples, settings, worker_count(run))

    _tell_of_marks(title, [samples[name] for name in cams.names], cams.keeps_features)
    write_parts(title, writer, make)
    writer.join(cams.names, texts)


def _tell_of_large_images(title: str, cams: Sequence[StoredCam], settings: RefineSettings) -> None:
    large = [cam.name for cam in cams if reduction(cam.size, settings) < 1]
    if large and settings.refines:
        more = f"more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("%s: %d images, the first %s, have %s", title, len(large), large[0], more)


def _tell_of_marks(title: str, samples: Sequence[Sample], spread: bool) -> None:
    marked = sum(map(has_marks, samples))
    if not marked:
        return
    how = "spread to what is like their pixels"
    if not spread:
        how = (
            "count at their own pixels only; for them to spread, set cam.keep_features = 32 and cam.walk_levels = 3 "
            "(maps are made anew)"
        )
    logger.info("%s: %d of %d images have clicks or scribbles, which %s", title, marked, len(samples), how)
