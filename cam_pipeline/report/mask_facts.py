"""How good the labels and the segmenter are, where there are masks: plain values for a page or a comparison."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cam_pipeline.assembly.single_stage import trained_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.views import image_labels
from cam_pipeline.evaluation.boundary import near_outlines
from cam_pipeline.evaluation.confusions import cam_sweep, target_labels
from cam_pipeline.machine.device import pick_device
from cam_pipeline.machine.progress import track
from cam_pipeline.models.placing import place
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.metrics import confusion_matrix, frequency_groups, iou_per_class, mean_iou
from cam_pipeline.prediction.label_maps import predict_labels
from cam_pipeline.refinement.background import background_score
from cam_pipeline.refinement.scores import THRESHOLDS
from cam_pipeline.report.label_facts import spread
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.scores import ScoreStore


@dataclass(frozen=True)
class ClassFigures:
    """Of one class (or the background): shares 0..1, or None for a class neither shown nor predicted.

    `false_positive` and `false_negative` are shares of the union, so that they and `iou` sum to 1. `group` is head,
    middle or tail, "" for the background; `training_images` show it.
    """

    name: str
    group: str
    training_images: int | None
    iou: float | None
    false_positive: float | None
    false_negative: float | None
    boundary: float | None


@dataclass(frozen=True)
class Compared:
    """Label maps compared with masks. `of` is the number of images with masks, `images` of those looked at.

    `mean_iou` and `boundary` (the mean IoU near outlines) are of complete maps; `ignored` is the share of pixels that
    were undecided; `groups` the mean IoU of head, middle and tail; `confused` are (class, taken for, share of the
    class's pixels), most pixels first; `each` is the mean IoU of every image, the worst first.
    """

    title: str
    split: str
    images: int
    of: int
    mean_iou: float
    boundary: float
    ignored: float
    classes: tuple[ClassFigures, ...]
    groups: Mapping[str, float | None]
    confused: tuple[tuple[str, str, float], ...]
    each: tuple[tuple[str, float], ...] = field(repr=False)


@dataclass(frozen=True)
class Sweep:
    """Mean IoU of the maps at every background score; `chosen` is the one that was used, `best` the best of these."""

    images: int
    backgrounds: tuple[float, ...]
    mean_ious: tuple[float, ...]
    chosen: float | None
    how: str

    @property
    def best(self) -> tuple[float, float]:
        """The best background score and its mean IoU."""
        value, at = max(zip(self.mean_ious, self.backgrounds, strict=True))
        return at, value

    @property
    def at_chosen(self) -> tuple[float, float] | None:
        """The place on the curve that is nearest to the chosen score; None if it is not known."""
        if self.chosen is None:
            return None
        chosen = self.chosen
        return min(zip(self.backgrounds, self.mean_ious, strict=True), key=lambda place: abs(place[0] - chosen))


def masked_samples(table: Table, split: str) -> list[Sample]:
    """The samples of a split that have a mask; none if no image is in it."""
    return [sample for sample in table.samples if sample.split == split and sample.mask is not None]


def sweep(config: Config, table: Table, results: Mapping[str, Path], most: int) -> Sweep | None:
    """The background scores of the maps of the training split; None without maps or masks."""
    split = config.data.train
    samples = spread(masked_samples(table, split), most)
    if not samples or split not in config.cam.splits or config.refine.maps_from not in results:
        return None
    confusions = cam_sweep(results[config.refine.maps_from], table, samples, config.refine)
    return Sweep(
        len(samples),
        tuple(round(value, 2) for value in THRESHOLDS.tolist()),
        tuple(mean_iou(confusions).tolist()),
        background_score(config.refine, results.get("refine_cams")),
        config.refine.background if isinstance(config.refine.background, str) else "set in the config",
    )


def compared_labels(config: Config, table: Table, results: Mapping[str, Path], most: int) -> Compared | None:
    """The pseudo-labels of the training split, undecided pixels completed from the scores; None without masks."""
    split = config.data.train
    all_of_them = masked_samples(table, split)
    if not all_of_them or split not in config.cam.splits or config.labels_stage not in results:
        return None

    def maps() -> Iterator[tuple[Sample, Tensor, int]]:
        scores_of = nullcontext() if config.single_stage else ScoreStore.open(results["refine_cams"])
        with LabelStore.open(results[config.labels_stage]) as store, scores_of as scores:
            for sample in spread(all_of_them, most):
                labels = store.read(sample.id)
                band = labels == IGNORE_INDEX
                if scores and band.any():
                    stored = scores.read(sample.id)
                    labels = np.where(band, complete_labels(stored.scores, stored.class_ids), labels)
                yield sample, torch.from_numpy(labels), int(band.sum())

    return _compared("pseudo-labels", split, config, table, maps(), len(all_of_them), most)


def compared_segmenter(config: Config, table: Table, results: Mapping[str, Path], most: int) -> Compared | None:
    """The segmenter's answers on the validation split; None without a segmenter or masks."""
    split = config.data.val or config.data.train
    all_of_them = masked_samples(table, split)
    network = config.predict.network
    if not all_of_them or network not in results:
        return None
    segmenter = trained_segmenter(config, results[network], table.classes)
    place(segmenter, pick_device(config.run))
    maps = ((sample, labels, 0) for sample, labels in predict_labels(segmenter, spread(all_of_them, most), config))
    return _compared("segmenter", split, config, table, maps, len(all_of_them), most)


def _compared(
    title: str,
    split: str,
    config: Config,
    table: Table,
    maps: Iterable[tuple[Sample, Tensor, int]],
    of: int,
    most: int,
) -> Compared:
    """Complete label maps (with the number of pixels that were undecided) compared with the samples' masks."""
    size = 1 + len(table.classes)
    total, near = torch.zeros(2, size, size, dtype=torch.int64)
    each: dict[str, float] = {}
    undecided = pixels = 0
    with track(f"compare {title}", min(of, most)) as progress:
        for sample, labels, ignored in maps:
            target = target_labels(sample, table)
            own = confusion_matrix(labels, target, size)
            total += own
            near += confusion_matrix(labels, near_outlines(target), size)
            each[sample.id] = float(mean_iou(own))
            undecided += ignored
            pixels += labels.numel()
            progress.advance()
    training = [sample for sample in table.samples if sample.split == config.data.train]
    counts = [int(count) for count in image_labels(training, len(table.classes)).sum(dim=0)]
    groups = frequency_groups(counts) if any(counts) else {}
    iou = iou_per_class(total)
    return Compared(
        title,
        split,
        len(each),
        of,
        float(mean_iou(total)),
        float(mean_iou(near)),
        undecided / pixels,
        tuple(class_figures(total, near, table.classes, counts, groups)),
        {name: _known(float(iou[1:][ids].nanmean())) for name, ids in groups.items()},
        tuple(confused(total, ("background", *table.classes))),
        tuple(sorted(((name, value) for name, value in each.items() if value == value), key=lambda item: item[1])),
    )


def class_figures(
    confusion: Tensor, near: Tensor, classes: Sequence[str], counts: Sequence[int], groups: Mapping[str, Sequence[int]]
) -> Iterator[ClassFigures]:
    """The figures of the background and of each class, from confusions (K, K) of all pixels and of those near outlines.

    `counts` are numbers of training images; `groups` as `ops.metrics.frequency_groups` gives them.
    """
    group_of = {number: name for name, numbers in groups.items() for number in numbers}
    hit = confusion.diagonal().double()
    missed, wrong = confusion.sum(dim=1) - hit, confusion.sum(dim=0) - hit
    union = hit + missed + wrong
    boundary = iou_per_class(near).tolist()
    for label, name in enumerate(("background", *classes)):
        iou, false_positive, false_negative = (
            _known(float(part[label] / union[label])) for part in (hit, wrong, missed)
        )
        images = counts[label - 1] if label else None
        group = group_of.get(label - 1, "")
        yield ClassFigures(name, group, images, iou, false_positive, false_negative, _known(boundary[label]))


def confused(confusion: Tensor, names: Sequence[str], most: int = 10) -> Iterator[tuple[str, str, float]]:
    """(class, taken for, share of the class's pixels): those with most pixels. A miss is taken for background."""
    wrong = confusion - torch.diag(confusion.diagonal())
    sizes = confusion.sum(dim=1)
    for index in wrong.flatten().sort(descending=True, stable=True).indices[:most].tolist():
        true, predicted = divmod(index, len(names))
        if wrong[true, predicted]:
            yield names[true], names[predicted], float(wrong[true, predicted] / sizes[true])


def _known(value: float) -> float | None:
    return value if value == value else None
