"""Numbers: how well CAMs, refined scores, pseudo-labels and the segmenter agree with masks.

Every figure is of the complete label map and carries the split, the number of images, the seed and what was used.
Masks serve for reporting only; a figure whose background score was chosen on them is called "oracle".
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cam_pipeline.assembly.single_stage import trained_segmenter
from cam_pipeline.config import Config, RefineSettings
from cam_pipeline.data.check.masks import warn_if_unseen
from cam_pipeline.data.marks import has_marks
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.views import image_labels
from cam_pipeline.errors import DataError
from cam_pipeline.evaluation.confusions import (
    Each,
    cam_sweep,
    labels_confusion,
    nearest_threshold,
    scores_confusion,
    segmenter_confusions,
    with_masks,
)
from cam_pipeline.machine.device import pick_device
from cam_pipeline.models.placing import place
from cam_pipeline.ops.metrics import (
    false_negative_share,
    false_positive_share,
    iou_per_class,
    mean_iou,
    mean_iou_interval,
    precision_per_class,
    recall_per_class,
)
from cam_pipeline.prediction.label_maps import Presences, PresencesOf
from cam_pipeline.refinement.background import background_score

TITLES = {
    "refine_cams": "refined",
    "make_labels": "pseudo-label",
    "label_e2e": "single-stage label",
    "train_e2e": "single stage",
    "train_seg": "segmenter",
}
"""Titles of a report's rows, by the stage that made the result; the CAM goes before them, see `titles_of`."""

LEARNED_FROM = {
    "pseudo-labels": "image labels",
    "mixed": "image labels",
    "scribbles": "clicks and scribbles",
    "masks": "masks",
}
"""What a segmenter learned from, by `train_seg.supervision`."""
SEGMENTERS = ("train_e2e", "train_seg")
"""The stages whose result is a segmenter."""

FEW = 200
"""Number of images up to which the mIoU is told with an interval; of many, single images hardly matter."""


@dataclass(frozen=True)
class Row:
    """One line of the report. `confusion` (K, K), rows truth; `coverage`: share of pixels outside the ignore band.

    `interval`: of the mIoU, if there are few images, but more than one (`ops.metrics.mean_iou_interval`).
    """

    map: str
    split: str
    images: int
    used: str
    confusion: Tensor
    background: float | None = None
    coverage: float | None = None
    interval: tuple[float, float] | None = None

    def figures(
        self, classes: Sequence[str], seed: int, groups: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, Any]:
        """All figures of this row as plain numbers in 0..1; None for a class neither predicted nor present.

        `groups`: classes, numbered from 0 without background; the mean IoU of each group is given, too.
        """
        iou = iou_per_class(self.confusion)
        of_groups = {name: float(iou[1:][list(ids)].nanmean()) for name, ids in (groups or {}).items()}
        return {
            "map": self.map,
            "split": self.split,
            "images": self.images,
            "seed": seed,
            "used": self.used,
            "background": self.background,
            "coverage": self.coverage,
            "mIoU": float(mean_iou(self.confusion)),
            "mIoU_interval": self.interval,
            "precision": float(precision_per_class(self.confusion).nanmean()),
            "recall": float(recall_per_class(self.confusion).nanmean()),
            "false_positive": float(false_positive_share(self.confusion)),
            "false_negative": float(false_negative_share(self.confusion)),
            "groups": {name: None if math.isnan(value) else value for name, value in of_groups.items()},
            "IoU": {
                name: None if math.isnan(value) else value for name, value in zip(classes, iou.tolist(), strict=True)
            },
        }


def _used(settings: RefineSettings) -> str:
    if settings.background != "from-split":
        return "image labels"
    return f"image labels; background from up to {settings.background_images} masks of {settings.background_split}"


def _and_marks(used: str, samples: Iterable[Sample]) -> str:
    """What was used, with the clicks and scribbles of these images."""
    return used.replace("image labels", "image labels, clicks and scribbles") if any(map(has_marks, samples)) else used


def titles_of(config: Config) -> dict[str, str]:
    """The titles of a report's rows, by the stage that made the result."""
    return {config.refine.maps_from: "CAM", **TITLES}


def cam_rows(
    confusions: Tensor,
    background: float | None,
    oracle: bool,
    used: str = "image labels",
    interval: tuple[float, float] | None = None,
    **facts: Any,
) -> list[Row]:
    """Rows of a sweep: at the given background score and, on request, at the best one (chosen on the masks).

    `interval`: of the mIoU at the given score.
    """
    rows = []
    if background is not None:
        nearest = nearest_threshold(background)
        rows.append(
            Row("CAM", used=used, confusion=confusions[nearest], background=nearest / 100, interval=interval, **facts)
        )
    if oracle:
        best = int(mean_iou(confusions).argmax())
        used = "image labels; background chosen on these masks (oracle)"
        rows.append(Row("CAM, oracle", used=used, confusion=confusions[best], background=best / 100, **facts))
    return rows


def evaluate(
    config: Config,
    table: Table,
    results: Mapping[str, Path],
    *,
    split: str = "",
    every: int = 1,
    oracle: bool = False,
    presences: PresencesOf | None = None,
) -> list[Row]:
    """Rows for all `results` (stage name -> file) that can be compared: CAM, refined, pseudo-label, segmenter.

    Without `split`, CAMs, scores and labels are compared on the training split and the segmenter on the validation
    split. `every` = N keeps the first of every N images. `oracle` adds the CAM at its best background score, and the
    segmenter's answer with the true classes of each image. `presences`, with `predict.classes = "classifier"`, gives
    those that the classifier sees; they add a row. `left_out` says why rows are missing. Logs classes that labels name
    and no mask shows. Raises DataError if no image is in `split`.
    """
    rows: list[Row] = []
    of_labels, of_segmenter = _compared_splits(config, table, split)
    samples = _samples_of(table, of_labels, every) if of_labels in config.cam.splits else []
    if config.refine.maps_from in results and samples:
        facts: dict[str, Any] = {"split": of_labels, "images": len(samples)}
        background = background_score(config.refine, results.get("refine_cams"))
        each = _each(samples)
        confusions = cam_sweep(results[config.refine.maps_from], table, samples, config.refine, each, background)
        warn_if_unseen(of_labels, samples, table.classes, confusions[0].sum(dim=1).tolist())
        facts["used"] = _used(config.refine)
        rows += cam_rows(confusions, background, oracle, interval=_interval(each), **facts)
        facts["background"] = background
        facts["used"] = _and_marks(facts["used"], samples)  # they have no part in maps
        if "refine_cams" in results:
            each = _each(samples)
            total = scores_confusion(results["refine_cams"], table, samples, each)
            rows.append(Row("refined", confusion=total, interval=_interval(each), **facts))
        if "refine_cams" in results and "make_labels" in results:
            each = _each(samples)
            total, coverage = labels_confusion(results["make_labels"], results["refine_cams"], table, samples, each)
            rows.append(Row("pseudo-label", confusion=total, coverage=coverage, interval=_interval(each), **facts))
    if "label_e2e" in results and samples:
        each = _each(samples)
        total, _ = labels_confusion(results["label_e2e"], None, table, samples, each)
        used = _and_marks("image labels", samples)
        rows.append(Row(TITLES["label_e2e"], of_labels, len(samples), used, total, interval=_interval(each)))
    samples = _samples_of(table, of_segmenter, every)
    for stage in SEGMENTERS if samples else ():
        if stage in results:
            answers = presences if stage == config.predict.network else None
            rows += _segmenter_rows(config, table, stage, results[stage], samples, of_segmenter, oracle, answers)
    return rows


def _segmenter_rows(
    config: Config,
    table: Table,
    stage: str,
    path: Path,
    samples: Sequence[Sample],
    split: str,
    oracle: bool,
    presences: PresencesOf | None,
) -> list[Row]:
    """The segmenter's row, and those with the classes of each image that the classifier sees and that are true."""
    segmenter = trained_segmenter(config, path, table.classes)
    place(segmenter, pick_device(config.run))
    title = TITLES[stage]
    by_classifier, true_classes = f"{title} + classifier", f"{title}, true classes"
    variants: dict[str, tuple[Presences | None, Each]] = {title: (None, _each(samples))}
    of_train = (sample for sample in table.samples if sample.split == config.data.train)
    learned = LEARNED_FROM[config.train_seg.supervision] if stage == "train_seg" else "image labels"
    used = {title: _and_marks(learned, of_train) if stage == "train_seg" else learned}
    if presences is not None:
        variants[by_classifier] = (presences(samples), _each(samples))
        used[by_classifier] = f"{used[title]}; {_by_classifier(config)}"
    if oracle and not _unlabelled(samples):
        variants[true_classes] = (_true_classes(samples, table), _each(samples))
        used[true_classes] = f"{used[title]}; with the classes of these labels (oracle)"
    totals = segmenter_confusions(segmenter, table, samples, config, variants)
    warn_if_unseen(split, samples, table.classes, totals[title].sum(dim=1).tolist())
    return [
        Row(name, split, len(samples), used[name], totals[name], interval=_interval(each))
        for name, (_, each) in variants.items()
    ]


def _by_classifier(config: Config) -> str:
    """How the classifier changed the segmenter's answer, in words."""
    threshold = config.predict.fixed_threshold
    return "probabilities multiplied" if threshold is None else f"without classes under {threshold:.3g}"


def _true_classes(samples: Sequence[Sample], table: Table) -> Presences:
    """1 for the classes that each image's labels name, 0 for the others."""
    shown = image_labels(samples, len(table.classes))
    return {sample.id: own for sample, own in zip(samples, shown, strict=True)}


def _unlabelled(samples: Sequence[Sample]) -> int:
    """The number of images whose labels are unknown."""
    return sum(sample.class_ids is None for sample in samples)


def _each(samples: Sequence[Sample]) -> Each:
    """Where the images' confusions are kept; None if there are too many images, or one alone."""
    return [] if 1 < len(samples) <= FEW else None


def _interval(each: Each) -> tuple[float, float] | None:
    return mean_iou_interval(torch.stack(each)) if each else None


def left_out(
    config: Config,
    table: Table,
    ready: Collection[str],
    not_ready: Mapping[str, str],
    *,
    split: str = "",
    every: int = 1,
    oracle: bool = False,
) -> list[str]:
    """Why rows are missing from the result of `evaluate`, one line each.

    `ready`: stages that have a result; `not_ready`: the other stages of the run, and why they have none. Other
    arguments as in `evaluate`.
    """
    of_labels, of_segmenter = _compared_splits(config, table, split)
    every_title = titles_of(config)
    lines = [f"{title}: {not_ready[stage]}" for stage, title in every_title.items() if stage in not_ready]
    titles = ", ".join(title for stage, title in every_title.items() if stage in ready and stage not in SEGMENTERS)
    if titles and of_labels not in config.cam.splits:
        lines.append(f"{titles}: no maps are made for split '{of_labels}'; name it in cam.splits")
    elif titles and not _samples_of(table, of_labels, every):
        lines.append(f"{titles}: {_no_mask(of_labels, every)}")
    if config.predict.network in ready:
        samples = _samples_of(table, of_segmenter, every)
        if not samples:
            lines.append(f"{TITLES[config.predict.network]}: {_no_mask(of_segmenter, every)}")
        elif oracle and (count := _unlabelled(samples)):
            title = f"{TITLES[config.predict.network]}, true classes"
            images = f"{count:,} of {len(samples):,} images of split '{of_segmenter}'"
            lines.append(f"{title}: {images} have no labels")
    return lines


def _compared_splits(config: Config, table: Table, split: str) -> tuple[str, str]:
    """The splits on which labels and the segmenter are compared. Raises DataError if no image is in `split`."""
    if split:
        table.split(split)
    return split or config.data.train, split or config.data.val or config.data.train


def _samples_of(table: Table, split: str, every: int) -> list[Sample]:
    """As `with_masks`, but for one split; empty if it has no masks or no images."""
    try:
        return with_masks((sample for sample in table.samples if sample.split == split), every)
    except DataError:
        return []


def _no_mask(split: str, every: int) -> str:
    return f"no image of split '{split}'{f' (the first of every {every})' if every > 1 else ''} has a mask"
