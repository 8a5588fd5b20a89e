"""How long the steps of a run will take on this machine: a step of each is tried, for seconds."""

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.assembly.single_stage import new_single_stage
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.config import Config, TrainSettings
from cam_pipeline.data.augment import Colors, PixelMap
from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8, sample_image, sample_size
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.views import TrainingViews, image_labels
from cam_pipeline.errors import ConfigError, LibraryMissing, one_line
from cam_pipeline.machine.device import autocast, is_memory_error, pick_device
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.machine.threads import use_threads
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.refinement.choice import images_to_choose_by
from cam_pipeline.refinement.scores import CPU, placed, refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import classifier_objectives, segmenter_objectives
from cam_pipeline.training.objectives.base import Objective
from cam_pipeline.training.objectives.classification import ClassificationObjective
from cam_pipeline.training.objectives.tscd import TscdObjective
from cam_pipeline.training.optimizer import make_optimizer
from cam_pipeline.training.trainer import on_device

logger = logging.getLogger(__name__)

FIRST = 2
"""Images of the first step that is tried; a whole batch of a large network takes a minute on a laptop."""
LONG = 1.0
"""Seconds. What takes longer is not repeated, and what would take longer is not tried with a whole batch."""
REPEATS = 5
SIZES = 100
"""Number of images, spread over the split, of which the one of median size stands for all."""
BACKGROUND = 0.4
"""Background score that is tried in place of one that is still to be chosen."""
BACKGROUNDS = 4
"""Scores that are usually tried with refinement until one is chosen."""


def forecast(config: Config, table: Table) -> tuple[dict[str, float], str]:
    """Seconds that each stage will take, about, and the type of the device on which its steps were tried.

    Networks have random weights. Stages that take seconds are left out, and so is one that cannot be tried: with too
    little memory, say. Starts no process, and takes some seconds itself.
    """
    try:
        device = pick_device(config.run)
    except ConfigError as error:  # a run will be on another machine
        logger.info("no times are told: %s", error)
        return {}, ""
    use_threads(config.run.threads)
    logger.info("check-data: trying a few steps, to tell how long a run takes")
    staged = {"train_cls": _of_classifier, "train_seg": _of_segmenter}
    attempts = {"train_e2e": _of_single_stage} if config.single_stage else staged
    found: dict[str, float] = {}
    for name, attempt in attempts.items():
        try:
            found |= attempt(config, table, device)
        except Exception as error:  # whatever it is: an estimate must not stop a check that has found no mistake
            why = "too little memory" if is_memory_error(error) else str(error)
            logger.info("no time is told for %s: %s", name, one_line(why))
    return found, device.type


def _of_classifier(config: Config, table: Table, device: torch.device) -> dict[str, float]:
    """Seconds of the stages up to the scores, for all of which the classifier is needed."""
    count, weights = len(table.classes), {"weights": "none", "trunk_weights": "none"}
    classifier = new_classifier(config.classifier.model_copy(update=weights), count)
    train = table.split(config.data.train)
    labels = image_labels(train, count)
    objectives = classifier_objectives(classifier, config, labels)
    place(classifier, device)
    views = _views(config.train_cls, train, classifier.normalize.fill, config.run.seed, labels=labels)
    training = _training_seconds(classifier, objectives, views, config.train_cls, config, device)

    classifier.eval()
    samples = table.split(*config.cam.splits)
    sample = _of_median_size(samples)
    pixels, size = sample_image(sample), sample_size(sample)
    stride = classifier.stride
    image = resize_to_grid(to_tensor(pixels), grid_size(*size, stride, config.cam.max_side), stride)[None]
    batch_size = config.cam.batch_size

    @torch.inference_mode()
    def look(images: Tensor) -> None:
        with autocast(config.run, device):
            classifier(image_batch(images, device))

    looking = _image_seconds(look, image, batch_size, device)
    val = [one for one in table.samples if one.split == config.data.val and one.class_ids is not None]
    training += config.train_cls.epochs * len(val) * looking

    of_all_views, settings = 1.0, config.cam
    if looking * batch_size > LONG:  # one view stands for all, by their areas
        of_all_views = sum(scale**2 for scale in settings.scales) * (2 if settings.flip else 1)
        settings = settings.model_copy(update={"scales": (1.0,), "flip": False})
    extractor = CamExtractor(classifier, config.model_copy(update={"cam": settings}))
    stored: list[StoredCam] = []

    def extract(images: Tensor) -> None:
        many = len(images)
        found = extractor.extract(
            image_batch(images, device), [sample.id] * many, [sample.class_ids] * many, [size] * many
        )
        stored.append(found[0][0])

    extracting = of_all_views * _image_seconds(extract, image, batch_size, device)
    refining = _refining_seconds(stored[-1], pixels, config, samples)
    return {"train_cls": training, "extract_cams": extracting * len(samples), "refine_cams": refining}


def _of_single_stage(config: Config, table: Table, device: torch.device) -> dict[str, float]:
    """Seconds of the single stage's training."""
    count, weights = len(table.classes), {"weights": "none", "trunk_weights": "none"}
    bare = config.model_copy(update={"classifier": config.classifier.model_copy(update=weights)})
    network = new_single_stage(bare, count)
    train = table.split(config.data.train)
    views = _views(
        config.train_e2e, train, network.classifier.normalize.fill, config.run.seed, labels=image_labels(train, count)
    )
    objectives = [ClassificationObjective(), TscdObjective(network, config)]
    place(network, device)
    seconds = _training_seconds(network, objectives, views, config.train_e2e, config, device)
    return {"train_e2e": seconds}


def _of_segmenter(config: Config, table: Table, device: torch.device) -> dict[str, float]:
    """Seconds of the segmenter's training; labels are of background alone."""
    segmenter = new_segmenter(config.segmenter.model_copy(update={"weights": "none"}), len(table.classes))
    train = table.split(config.data.train)
    objectives = segmenter_objectives(segmenter, config, torch.zeros(len(train), len(table.classes)))
    place(segmenter, device)

    def blank(index: int) -> UInt8:
        return np.zeros(sample_size(train[index]), np.uint8)

    def sure(index: int) -> dict[str, PixelMap]:
        full = torch.from_numpy(blank(index) + 255)
        scores = PixelMap(full[None], smooth=True, fill=0, channels=(0,), depth=1 + len(table.classes))
        return {"confidence": PixelMap(full, fill=0), "agreement": PixelMap(full, fill=0), "scores": scores}

    settings, fill = config.train_seg, segmenter.normalize.fill
    beside = sure if settings.powers or settings.soft else None
    views = _views(settings, train, fill, config.run.seed, read_mask=blank, read_maps=beside)
    seconds = _training_seconds(segmenter, objectives, views, config.train_seg, config, device)
    return {"train_seg": seconds}


def _views(
    settings: TrainSettings, samples: Sequence[Sample], fill: tuple[int, int, int], seed: int, **more: object
) -> TrainingViews:
    colors = Colors(*settings.colors)
    return TrainingViews(samples, crop=settings.crop, scale=settings.scale, fill=fill, seed=seed, colors=colors, **more)  # type: ignore[arg-type]


def _training_seconds(
    network: nn.Module,
    objectives: Sequence[Objective],
    views: TrainingViews,
    settings: TrainSettings,
    config: Config,
    device: torch.device,
) -> float:
    """Seconds of all steps, from those of a small step, and of a whole one if that is quick.

    Workers load images while a GPU computes; on the CPU both need the same cores.
    """
    loss = Loss(network, objectives)
    optimizer = make_optimizer(network, settings)  # type: ignore[arg-type]
    more = [objective.more_views for objective in objectives if objective.more_views is not None]

    def step_seconds(images: int) -> tuple[float, int]:
        """Seconds of a step of so many images, and how many views objectives add to it."""
        batches = EpochBatches(len(views), images, 1, config.run.seed, more=more)
        keys = next(iter(batches))
        started = time.monotonic()
        items = [views[key] for key in keys]
        loading = (time.monotonic() - started) / worker_count(config.run)
        batch = on_device(default_collate(items), device)

        def step() -> None:
            network.train()
            with autocast(config.run, device):
                total = loss(batch, 1.0)["loss"]
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            for objective in objectives:
                objective.after_step()

        computing = _seconds(step, device)
        seconds = max(loading, computing) if device.type == "cuda" else loading + computing
        return seconds, len(keys) - images

    whole = EpochBatches(len(views), settings.batch_size, settings.epochs, config.run.seed)
    once = settings.at_once(len(views))
    few = min(FIRST, once)
    seconds, extra = step_seconds(few)
    seconds *= (once + extra) / (few + extra)
    if few < once and seconds < LONG:
        seconds, _ = step_seconds(once)
    return seconds * whole.steps * settings.accumulate


def _refining_seconds(cam: StoredCam, pixels: UInt8, config: Config, samples: Sequence[Sample]) -> float:
    """Seconds of the refinement of all images, and of the choice of the background score."""
    count = len(samples)
    try:
        settings, device = placed(config.refine, config.run)
    except LibraryMissing as error:  # a run may be on another machine
        logger.warning("a run would fail here: %s", error)
        settings, device = config.refine.model_copy(update={"crf_backend": "torch"}), pick_device(config.run)
    if isinstance(settings.background, str):
        count += BACKGROUNDS * len(images_to_choose_by(settings, samples))
        settings = settings.at(BACKGROUND)
    seconds = count * _seconds(lambda: refined(cam, lambda: pixels, settings, device), device)
    return seconds / worker_count(config.run) if device == CPU else seconds


def _image_seconds(act: Callable[[Tensor], None], image: Tensor, batch_size: int, device: torch.device) -> float:
    """Seconds for one image (1, 3, H, W), from those of one alone, or of a batch if that is quick."""
    seconds = _seconds(lambda: act(image), device)
    if seconds * batch_size < LONG:
        batch = image.repeat(batch_size, 1, 1, 1)
        seconds = _seconds(lambda: act(batch), device) / batch_size
    return seconds


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of the first if it takes long, else the median of some more."""

    def timed() -> float:
        started = time.monotonic()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    first = timed()
    if first > LONG:
        return first
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < LONG:
        times.append(timed())
    return float(np.median(times))


def _of_median_size(samples: Sequence[Sample]) -> Sample:
    """An image of median size, if possible one that shows a class."""
    places = np.linspace(0, len(samples) - 1, min(SIZES, len(samples)))
    some = [samples[int(place)] for place in places]
    some = [sample for sample in some if sample.class_ids] or some
    by_size = sorted(range(len(some)), key=lambda place: math.prod(sample_size(some[place])))
    return some[by_size[len(some) // 2]]
