"""The background score, if the config leaves it open: chosen without masks, or on the masks of a small split."""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.check.masks import no_class_to_choose_by
from cam_pipeline.data.grid import to_tensor
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.interrupt import ignore_in_worker, raise_if_stopped
from cam_pipeline.machine.parallel import KILLED, Workers
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.metrics import (
    confusion_matrix,
    confusions_from_histogram,
    mean_iou,
    threshold_histogram,
)
from cam_pipeline.ops.otsu import explained_variance
from cam_pipeline.refinement.choice import images_to_choose_by
from cam_pipeline.refinement.scores import CPU, HIGHEST, THRESHOLDS, ReadImage, best_class, refined_scores
from cam_pipeline.store.cams import CamStore, StoredCam
from cam_pipeline.store.scores import ScoreStore

logger = logging.getLogger(__name__)

SIZE_POWER = 0.75
"""Exponent of the sizes in Otsu's criterion: 1 favours objects that fill half an image, 0 (contrast alone) single
cells. Chosen on generated images with objects of three sizes (docs/results/background-score.md)."""
TOP = 0.8
"""Scores whose value reaches this share of the best value are averaged. The best score itself is unstable: where the
curve is flat, a few images decide it. Chosen on generated images and on `val` of voc-mini
(docs/results/background-score.md)."""
STRIDE = 0.1
"""Spacing of the scores that are tried with refinement; 0.06 is no better."""

Measure = Callable[[StoredCam, Sample], Tensor]
Total = Callable[[Measure, Sequence[Sample]], Tensor]
"""Gives the sum of a measure over images."""


class ImagesLost(Exception):
    """Images that kill the worker that refines them; `names` are their ids."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(f"{len(names)} images kill their worker")
        self.names = frozenset(names)


def settled(
    settings: RefineSettings,
    workers: Workers,
    cams: CamStore,
    samples: Sequence[Sample],
    num_labels: int,
    folder: Path,
    device: torch.device,
    before: float | None = None,
) -> RefineSettings:
    """The settings with a number as background score. A chosen score is noted in `folder`, so it is chosen once.

    `before`: the one that an earlier run chose on the same images, if there is one. `samples` are the images of `cams`;
    `device` refines them. Errors as `choose_background`.
    """
    if not isinstance(settings.background, str):
        return settings
    note = folder / "background.json"
    known = read_json(note).get("background")
    if not isinstance(known, float):
        known = before or _chosen(settings, workers, cams, samples, num_labels, device)
        write_text(note, json.dumps({"background": known}))
    logger.info("refine_cams: background score %.2f (%s)", known, settings.background)
    return settings.at(known)


def _chosen(
    settings: RefineSettings,
    workers: Workers,
    cams: CamStore,
    samples: Sequence[Sample],
    num_labels: int,
    device: torch.device,
) -> float:
    """The background score chosen for these images. An image that kills its worker is left out, at every score."""
    lost: frozenset[str] = frozenset()
    with track("background score", 0, unit="images looked at") as progress:

        def total(measure: Measure, images: Sequence[Sample]) -> Tensor:
            progress.total += len(images)
            sum_of_all = torch.zeros(())
            lost_here = []
            results = workers.results(images, lambda sample: partial(measured, measure, cams.read(sample.id), sample))
            with closing(results):
                for sample, value in zip(images, results, strict=True):
                    raise_if_stopped()
                    progress.advance()
                    if value is None:
                        lost_here.append(sample.id)
                    else:
                        sum_of_all = sum_of_all + value
            if lost_here:
                raise ImagesLost(lost_here)
            return sum_of_all

        while True:
            try:
                left = [one for one in samples if one.id not in lost]
                return choose_background(settings, left, num_labels, total, device)
            except ImagesLost as error:
                lost |= error.names
                logger.warning(
                    "refine_cams: %s; the background score is chosen without the images that cause this", KILLED
                )


def measured(measure: Measure, cam: StoredCam, sample: Sample) -> Tensor:
    """The measure of one image; runs in a worker process."""
    ignore_in_worker()
    return measure(cam, sample)


def choose_background(
    settings: RefineSettings,
    samples: Sequence[Sample],
    num_labels: int,
    total: Total,
    device: torch.device = CPU,
) -> float:
    """The middle of the background scores that do nearly as well as the best (`middle_of_top`).

    The criterion of `auto` is how well foreground and background explain the images' colours (the root of
    `ops.otsu.explained_variance` with a power below 1). Objects differ from their surroundings, and an outline too wide
    or too tight mixes both. It needs no masks. The criterion of `from-split` is mIoU.

    1. One pass over unrefined maps measures every score: on all `samples` for `auto`, else on `images_to_choose_by`.
    2. Refinement moves the middle, most often down. So scores around the unrefined middle are measured with
       refinement, on `images_to_choose_by`.

    Raises DataError if no map separates anything from its surroundings, and for `from-split` if no mask has a pixel of
    a class.
    """
    few = images_to_choose_by(settings, samples)
    value_at: Callable[[float], float]
    if settings.background == "auto":
        curve = total(partial(explained_by_map, settings=settings), samples)

        def value_at(background: float) -> float:
            return float(total(partial(explained_when_refined, settings=settings.at(background), device=device), few))

    else:
        histogram = total(partial(map_histogram, settings=settings, num_labels=num_labels), few)
        confusions = confusions_from_histogram(histogram)
        if not confusions[0, 1:].any():
            raise DataError(no_class_to_choose_by(settings.background_split))
        curve = mean_iou(confusions)

        def value_at(background: float) -> float:
            at = settings.at(background)
            measure = partial(confusion_when_refined, settings=at, num_labels=num_labels, device=device)
            return float(mean_iou(total(measure, few)))

    unrefined = dict(
        zip(THRESHOLDS.tolist()[1:], curve.tolist()[1:], strict=True)
    )  # a background score of 0 leaves no background
    if not max(unrefined.values()) > 0:
        raise DataError(
            f"refine.background = '{settings.background}': no map tried separates anything from its "
            "surroundings; set a number"
        )
    start = middle_of_top(unrefined)
    if not settings.refines:
        return start
    seen = look_around(value_at, start)
    steps = ", ".join(f"{at:.2f}: {value:.4f}" for at, value in sorted(seen.items()))
    logger.debug("background score: %.2f before refinement; with it %s", start, steps)
    return middle_of_top(seen)


def middle_of_top(values: Mapping[float, float]) -> float:
    """The weighted mean of evenly spaced places, to two decimals.

    The weight of a place is how far its value exceeds `TOP` times the greatest value; other places do not count.
    """
    least = TOP * max(values.values())
    heavy = {place: value - least for place, value in values.items() if value > least}
    if not heavy:  # no value is above 0, so all are equally good
        return round(mean(values), 2)
    return round(sum(place * weight for place, weight in heavy.items()) / sum(heavy.values()), 2)


def look_around(
    value_at: Callable[[float], float], start: float, stride: float = STRIDE, top: float = TOP
) -> dict[float, float]:
    """Values at `start` and every `stride` to both sides, up to a value of at most `top` times the greatest seen."""
    seen = {start: value_at(start)}
    for step in (-stride, stride):
        place = round(start + step, 2)
        while 1 - HIGHEST <= place <= HIGHEST:
            seen[place] = value_at(place)
            if seen[place] <= top * max(seen.values()):
                break
            place = round(place + step, 2)
    return seen


def explained_by_map(cam: StoredCam, sample: Sample, settings: RefineSettings) -> Tensor:
    """How well the unrefined foreground explains an image's colours, at every background score: (T,) >= 0.

    The image is reduced to the map's grid: the map shows nothing finer.
    """
    grid = (cam.cam.shape[-2], cam.cam.shape[-1])
    cells = F.interpolate(to_tensor(sample_image(sample))[None].float(), grid, mode="area")[0]
    score = best_class(replace(cam, size=grid), settings)[1]
    return explained_variance(cells, score, THRESHOLDS, SIZE_POWER).sqrt()


def explained_when_refined(
    cam: StoredCam, sample: Sample, settings: RefineSettings, device: torch.device = CPU
) -> Tensor:
    """How well the refined foreground explains an image's colours: (1,) >= 0."""
    read = cache(partial(sample_image, sample))
    foreground = torch.from_numpy(_labels(cam, read, settings, device) > 0).float()
    edge = torch.tensor([0.5])
    return explained_variance(to_tensor(read()).float(), foreground, edge, SIZE_POWER).sqrt()


def map_histogram(cam: StoredCam, sample: Sample, settings: RefineSettings, num_labels: int) -> Tensor:
    """Agreement of the unrefined map with the mask, at every background score at once: (K, K, T + 1)."""
    best, score = best_class(cam, settings)
    return threshold_histogram(best, score, _mask(sample, num_labels), THRESHOLDS, num_labels)


def confusion_when_refined(
    cam: StoredCam, sample: Sample, settings: RefineSettings, num_labels: int, device: torch.device = CPU
) -> Tensor:
    """Agreement of the refined labels with the mask: (K, K)."""
    labels = torch.from_numpy(_labels(cam, partial(sample_image, sample), settings, device))
    return confusion_matrix(labels, _mask(sample, num_labels), num_labels)


def _labels(cam: StoredCam, read_image: ReadImage, settings: RefineSettings, device: torch.device) -> UInt8:
    return complete_labels(refined_scores(cam, read_image, settings, device), cam.class_ids)


def _mask(sample: Sample, num_labels: int) -> Tensor:
    return torch.from_numpy(np.array(sample_mask(sample, num_labels - 1)))


def background_score(settings: RefineSettings, scores: Path | None) -> float | None:
    """The background score: the configured number, else the one in the file `scores`; None if not yet chosen."""
    if not isinstance(settings.background, str):
        return settings.background
    if scores is None:
        return None
    with ScoreStore.open(scores) as store:
        return store.background
