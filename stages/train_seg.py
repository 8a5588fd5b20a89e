"""Pseudo-labels, scribbles, or masks for the reference -> a DeepLab segmenter (segmenter.safetensors)."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.augment import Colors, PixelMap
from cam_pipeline.data.check.data_set import too_few_images
from cam_pipeline.data.check.masks import check_supervision
from cam_pipeline.data.check.training_marks import check_marked, without_marks
from cam_pipeline.data.images import UInt8, sample_size
from cam_pipeline.data.marks import has_marks, sample_marks
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample, Table, check_files, masked
from cam_pipeline.data.views import ReadMaps, ReadMask, TrainingViews, image_labels
from cam_pipeline.errors import ConfigError, DataError
from cam_pipeline.machine.device import pick_device
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.models.placing import place
from cam_pipeline.models.pretrained import starting_weights
from cam_pipeline.ops.cam import resize_cam
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.repeat import repeat_factors
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.summary import classes_lost, counted, nothing_to_learn, total_of
from cam_pipeline.store.agreement import AgreementReader
from cam_pipeline.store.checkpoints import save_model
from cam_pipeline.store.labels import LabelReader, LabelStore
from cam_pipeline.store.scores import ScoreReader
from cam_pipeline.training.dry_run import check_segmenter_crops, check_weights, try_segmenter
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.objectives.moving_average import MovingAverageObjective
from cam_pipeline.training.trainer import Trainer
from cam_pipeline.training.validation import warn_if_blind

logger = logging.getLogger(__name__)


def train_seg(config: Config, inputs: Inputs, output: Output) -> None:
    """Train a segmenter on the training split. The result is the weights after the last epoch."""
    table = inputs.table
    train = table.split(config.data.train)
    check_files(train)
    read_labels = supervision(config, inputs, table, train)
    if message := too_few_images(config, len(train)):
        raise ConfigError(message)
    device = pick_device(config.run)
    torch.manual_seed(config.run.seed)
    segmenter = new_segmenter(config.segmenter, len(table.classes))
    output.notes["starts_from"] = {"weights": config.segmenter.weights, **starting_weights(segmenter)}
    labels = known_labels(train, len(table.classes))
    objectives = segmenter_objectives(segmenter, config, labels)
    check_segmenter_crops(segmenter, config, len(train))
    place(segmenter, device)

    settings, fill = config.train_seg, segmenter.normalize.fill
    trainer = Trainer(
        name="train_seg",
        network=segmenter,
        objectives=objectives,
        views=TrainingViews(
            train,
            crop=settings.crop,
            scale=settings.scale,
            fill=fill,
            seed=config.run.seed,
            read_mask=read_labels,
            read_maps=beside_labels(config, inputs, train),
            colors=Colors(*settings.colors),
        ),
        report=dict,
        settings=settings,
        run=config.run,
        folder=output.folder,
        repeats=repeats(labels, settings.repeat),
    )
    trainer.fit()
    for objective in objectives:
        if isinstance(objective, MovingAverageObjective):
            objective.put_in_place()
    segmenter.exits = segmenter.consistency = None
    if is_first():
        warn_if_blind(segmenter, train, config)
        trainer.write_history(output.logs / "train_seg.jsonl")
        save_model(output.path, segmenter, {"classes": table.classes, "fingerprint": output.fingerprint})


def known_labels(samples: list[Sample], num_classes: int) -> Tensor:
    """(N, num_classes) 0/1: the classes that images show; NaN for an image that nobody labelled."""
    labels = image_labels(samples, num_classes)
    labels[[sample.class_ids is None for sample in samples]] = torch.nan
    return labels


def repeats(labels: Tensor, threshold: float) -> list[float]:
    """How often each image is shown beside others (`ops.repeat`); empty if `train_seg.repeat` is off.

    Logs how many come more often, and a warning if none does.
    """
    if not threshold:
        return []
    factors = repeat_factors(labels, threshold)
    more = int((factors > 1).sum())
    if more:
        logger.info(
            "train_seg: %d of %d images come more often than others, up to %.1f times",
            more,
            len(factors),
            factors.max(),
        )
    else:
        logger.warning(
            "train_seg.repeat = %s changes nothing: every class is shown by so large a share of the images; raise it",
            threshold,
        )
    return factors.tolist()


def supervision(config: Config, inputs: Inputs, table: Table, train: list[Sample]) -> ReadMask:
    """The labels that the segmenter learns from, checked: a function from an index into `train` to labels (H, W)."""
    if config.train_seg.supervision == "masks":
        check_supervision(config.data.train, masked(train), table.classes)
        return partial(_indexed_mask, train, len(table.classes))
    if config.train_seg.supervision == "scribbles":
        check_marked(config.data.train, train, table.classes, config.segmenter.regularizer != "none")
        return partial(_indexed_marks, train, len(table.classes))
    if config.train_seg.supervision == "mixed" and (message := without_marks("mixed", config.data.train, train)):
        raise DataError(message)
    made_by = "label_e2e" if config.train_seg.from_e2e else "make_labels"
    check_coverage(inputs[made_by], table, train, config.labels.undecided)
    return LabelReader(inputs[made_by], [sample.id for sample in train])


def beside_labels(config: Config, inputs: Inputs, train: list[Sample]) -> ReadMaps | None:
    """What else the segmenter learns from, as maps by index into `train`; None if from the labels alone."""
    names = [sample.id for sample in train]
    if config.train_seg.soft:
        return partial(_scores, ScoreReader(inputs["score_cams"], names), 1 + len(inputs.table.classes))
    powers = config.train_seg.powers
    if not powers:
        return None
    labels = LabelReader(inputs["label_e2e" if config.train_seg.from_e2e else "make_labels"], names)
    networks = AgreementReader(inputs["compare_cams"], names) if "agreement" in powers else None
    return partial(_weights, labels if "confidence" in powers else None, networks, labels)


def _weights(
    confidence: LabelReader | None, networks: AgreementReader | None, labels: LabelReader, index: int
) -> dict[str, PixelMap]:
    """What the pixels of an image are weighted by. What people say counts fully."""
    maps = {}
    if confidence is not None:
        maps["confidence"] = PixelMap(torch.from_numpy(confidence.confidence(index)), fill=0)
    if networks is not None:
        origin = labels.origin(index)
        whole = resize_cam(torch.from_numpy(networks(index))[None].float(), origin.shape)[0].round().byte()
        maps["agreement"] = PixelMap(torch.where(torch.from_numpy(origin) > 0, 255, whole), fill=0)
    return maps


def _scores(reader: ScoreReader, depth: int, index: int) -> dict[str, PixelMap]:
    scores, class_ids = reader(index)
    return {"scores": PixelMap(torch.from_numpy(scores), smooth=True, fill=0, channels=(0, *class_ids), depth=depth)}


def _indexed_mask(samples: list[Sample], num_classes: int, index: int) -> UInt8:
    return sample_mask(samples[index], num_classes)


def _indexed_marks(samples: list[Sample], num_classes: int, index: int) -> UInt8:
    return sample_marks(samples[index], num_classes).labels


def check_coverage(path: Path, table: Table, train: list[Sample], undecided: str = "scores") -> None:
    """Check before the first step that the labels have the same classes, every training image, and its size.

    Logs the shares of ignored pixels and of those that people marked, and classes that images show but no label. Raises
    DataError that names the first image that does not fit, or if no label is a class although images show some;
    `undecided` is `labels.undecided`.
    """
    with LabelStore.open(path) as store:
        if store.classes != ("background", *table.classes):
            raise DataError(
                f"{path} has the classes {', '.join(store.classes[1:])}, the data has {', '.join(table.classes)}"
            )
        absent = sorted({sample.id for sample in train} - set(store.names))
        if absent:
            raise DataError(
                f"{path} lacks {len(absent)} of {len(train)} training images, the first is {absent[0]}; "
                f"run {'train-e2e' if path.name == 'e2e_labels.h5' else 'make-cams'}"
            )
        images, marked, said = [], 0, 0
        for sample in train:
            labels = store.read(sample.id)
            if has_marks(sample):
                marked, said = marked + 1, said + int(np.count_nonzero(store.origin(sample.id)))
            if labels.shape != sample_size(sample):
                raise DataError(f"{path}: labels of {sample.id} are {labels.shape}, its image is {sample_size(sample)}")
            images.append(counted(sample.id, sample.class_ids or (), labels))
    total = total_of(images)
    if message := nothing_to_learn(images, total, undecided):
        raise DataError(f"{path}: {message}")
    share = total[IGNORE_INDEX] / total.total()
    logger.info("train_seg: %d images, %.1f %% of the pixels are ignored", len(train), 100 * share)
    if marked:
        logger.info(
            "train_seg: people say what %.2f %% of the pixels are, in %d images", 100 * said / total.total(), marked
        )
    lost = ", ".join(table.classes[class_id - 1] for class_id in classes_lost(images, total))
    if lost:
        logger.info("train_seg: no label is %s, so the segmenter learns nothing about that", lost)
    if not total[0]:
        logger.info("train_seg: no label is background, so everything becomes an object; raise refine.background")


def check(config: Config) -> None:
    """Raise a UserError if the segmenter cannot be built or trained with this config."""
    settings = config.segmenter
    check_weights("segmenter.weights", settings.weights, settings.encoder, settings.encoder_args)
    try_segmenter(config)
