"""Confusion matrices of maps, scores, labels and predictions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cam_pipeline.config import Config, RefineSettings
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.machine.progress import track
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.metrics import (
    confusion_matrix,
    confusions_from_histogram,
    threshold_histogram,
)
from cam_pipeline.prediction.label_maps import Presences, predict_variants
from cam_pipeline.refinement.scores import THRESHOLDS, best_class
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.scores import ScoreStore


def with_masks(samples: Iterable[Sample], every: int = 1) -> list[Sample]:
    """Those with a mask among the first of every `every` samples. Raises DataError if there is none."""
    chosen = [sample for sample in list(samples)[::every] if sample.mask is not None]
    if not chosen:
        raise DataError("no image of this split has a mask, so there is nothing to compare with")
    return chosen


def target_labels(sample: Sample, table: Table) -> Tensor:
    """The mask of a sample as labels (H, W) uint8."""
    return torch.from_numpy(np.array(sample_mask(sample, len(table.classes))))


Each = list[Tensor] | None
"""Takes the confusion (K, K) of each image, if it is a list."""


def cam_sweep(
    path: Path,
    table: Table,
    samples: Sequence[Sample],
    settings: RefineSettings,
    each: Each = None,
    background: float | None = None,
) -> Tensor:
    """Exact confusion of the CAMs at every background score of THRESHOLDS, in one pass: (T, K, K).

    Uses the settings that `refinement.scores.class_scores` reads. `each` takes the images' confusions at the
    `background` score.
    """
    num_labels = 1 + len(table.classes)
    total = torch.zeros(num_labels, num_labels, len(THRESHOLDS) + 1, dtype=torch.int64)
    with CamStore.open(path) as store, track("evaluate CAM", len(samples)) as progress:
        for sample in samples:
            best, score = best_class(store.read(sample.id), settings)
            counts = threshold_histogram(best, score, target_labels(sample, table), THRESHOLDS, num_labels)
            total += counts
            if each is not None and background is not None:
                each.append(confusions_from_histogram(counts)[nearest_threshold(background)])
            progress.advance()
    return confusions_from_histogram(total)


def nearest_threshold(background: float) -> int:
    """The place of a background score in THRESHOLDS."""
    return int((THRESHOLDS - background).abs().argmin())


def _confusion_of(
    title: str,
    table: Table,
    samples: Sequence[Sample],
    predict: Callable[[Sample], tuple[Tensor, int]],
    each: Each,
) -> tuple[Tensor, float]:
    """Confusion (K, K) of complete label maps, and the share of pixels decided.

    `predict` gives an image's complete map and how many of its pixels were undecided; `each` takes its confusion.
    """
    num_labels = 1 + len(table.classes)
    total = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    undecided = pixels = 0
    with track(f"evaluate {title}", len(samples)) as progress:
        for sample in samples:
            labels, ignored = predict(sample)
            _add(total, confusion_matrix(labels, target_labels(sample, table), num_labels), each)
            undecided += ignored
            pixels += labels.numel()
            progress.advance()
    return total, 1 - undecided / pixels


def _add(total: Tensor, confusion: Tensor, each: Each) -> None:
    total += confusion
    if each is not None:
        each.append(confusion)


def scores_confusion(path: Path, table: Table, samples: Sequence[Sample], each: Each = None) -> Tensor:
    """Confusion of the refined scores' best channels; `each` takes those of the images."""
    with ScoreStore.open(path) as store:

        def predict(sample: Sample) -> tuple[Tensor, int]:
            stored = store.read(sample.id)
            return torch.from_numpy(complete_labels(stored.scores, stored.class_ids)), 0

        return _confusion_of("scores", table, samples, predict, each)[0]


def labels_confusion(
    labels: Path, scores: Path | None, table: Table, samples: Sequence[Sample], each: Each = None
) -> tuple[Tensor, float]:
    """Confusion and coverage of the pseudo-labels; undecided pixels get the best channel of their scores.

    `scores` None: the labels leave nothing undecided. `each` takes the confusions of the images.
    """
    with LabelStore.open(labels) as store, ScoreStore.open(scores) if scores else nullcontext() as score_store:

        def predict(sample: Sample) -> tuple[Tensor, int]:
            decided = store.read(sample.id)
            if score_store is None:
                return torch.from_numpy(decided), 0
            stored = score_store.read(sample.id)
            band = decided == IGNORE_INDEX
            complete = np.where(band, complete_labels(stored.scores, stored.class_ids), decided)
            return torch.from_numpy(complete), int(band.sum())

        return _confusion_of("labels", table, samples, predict, each)


def segmenter_confusions(
    segmenter: Segmenter,
    table: Table,
    samples: Sequence[Sample],
    config: Config,
    variants: Mapping[str, tuple[Presences | None, Each]],
) -> dict[str, Tensor]:
    """Confusions of a segmenter's predictions, one for each of the variants, all from one forward pass.

    A variant is how much each class counts in each image (None: all alike; `prediction.label_maps`), and the list that
    takes the confusions of the images.
    """
    num_labels = 1 + len(table.classes)
    totals = {name: torch.zeros(num_labels, num_labels, dtype=torch.int64) for name in variants}
    presences = [presences for presences, _ in variants.values()]
    with track("evaluate segmenter", len(samples)) as progress:
        for sample, found in predict_variants(segmenter, samples, config, presences):
            target = target_labels(sample, table)
            for (name, (_, each)), labels in zip(variants.items(), found, strict=True):
                _add(totals[name], confusion_matrix(labels, target, num_labels), each)
            progress.advance()
    return totals
