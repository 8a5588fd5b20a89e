"""What pseudo-labels say about themselves, without any mask: where it is worth looking."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from cam_pipeline.data.table import Sample
from cam_pipeline.machine.progress import track
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore

BINS = 20
"""Bars of the histogram of confidence."""
FEWEST = 5
"""Images that must show a class before one of them can be called unusual."""
TIMES = 4
"""How often as large, or as small, as the median an area must be at least to be called unusual."""
SPREADS = 3
"""And how many spreads (of the logarithms of the areas: 1.48 times the median distance from the median) away."""
ORIGINS = ("pseudo-label", "click", "scribble", "mask", "corrected")
"""Who says what a pixel is, as pseudo_labels.h5 numbers it (`data.strokes`)."""


@dataclass(frozen=True)
class Lost:
    """An image whose label has no pixel of a class (1-based) that the image shows."""

    image: str
    class_id: int


@dataclass(frozen=True)
class OddArea:
    """An image in which a class covers an unusual share of the pixels; `usual` is the median of the class."""

    image: str
    class_id: int
    share: float
    usual: float


@dataclass(frozen=True)
class LabelFacts:
    """What the labels of some images say. `of` is the number of images that there are, `images` of those looked at.

    `confidence` counts pixels in BINS equal parts of 0..1; `doubtful` are images with their mean confidence, least
    first; `ignored` is the share of undecided pixels; `origins` counts pixels by ORIGINS; `together` counts the images
    that show two classes (1-based, the smaller first).
    """

    images: int
    of: int
    confidence: tuple[int, ...]
    mean_confidence: float
    doubtful: tuple[tuple[str, float], ...]
    lost: tuple[Lost, ...]
    odd: tuple[OddArea, ...]
    ignored: float
    origins: Mapping[str, int]
    together: Mapping[tuple[int, int], int] = field(default_factory=dict)


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of the samples, evenly spread."""
    places = np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int)
    return [samples[place] for place in places]


def label_facts(path: Path, samples: Sequence[Sample], most: int, doubtful: int = 20) -> LabelFacts | None:
    """The facts of at most `most` of the samples' labels in pseudo_labels.h5; None if it has none of them."""
    histogram = np.zeros(256, dtype=np.int64)
    origins = np.zeros(len(ORIGINS), dtype=np.int64)
    means: dict[str, float] = {}
    shares: dict[int, dict[str, float]] = {}
    lost: list[Lost] = []
    ignored = 0
    with LabelStore.open(path) as store:
        known = set(store.names)
        all_of_them = [sample for sample in samples if sample.id in known]
        chosen = spread(all_of_them, most)
        if not chosen:
            return None
        with track("look at labels", len(chosen)) as progress:
            for sample in chosen:
                labels, confidence = store.read(sample.id), store.confidence(sample.id)
                histogram += np.bincount(confidence.ravel(), minlength=256)
                means[sample.id] = float(confidence.mean()) / 255
                origins += np.bincount(store.origin(sample.id).ravel(), minlength=len(ORIGINS))
                counts = np.bincount(labels.ravel(), minlength=256)
                ignored += int(counts[IGNORE_INDEX])
                lost += [Lost(sample.id, one) for one in sample.class_ids or () if not counts[one]]
                for class_id in counts[1:IGNORE_INDEX].nonzero()[0] + 1:
                    shares.setdefault(int(class_id), {})[sample.id] = float(counts[class_id] / labels.size)
                progress.advance()
    pixels = int(histogram.sum())
    edges = np.minimum(np.arange(256) * BINS // 255, BINS - 1)
    return LabelFacts(
        images=len(chosen),
        of=len(all_of_them),
        confidence=tuple(int(count) for count in np.bincount(edges, weights=histogram, minlength=BINS)),
        mean_confidence=float((histogram * np.arange(256)).sum() / 255 / pixels),
        doubtful=tuple(sorted(means.items(), key=lambda item: item[1])[:doubtful]),
        lost=tuple(lost),
        odd=tuple(odd_areas(shares)),
        ignored=ignored / pixels,
        origins={name: int(count) for name, count in zip(ORIGINS, origins, strict=True)},
        together=together(samples),
    )


def odd_areas(shares: Mapping[int, Mapping[str, float]]) -> list[OddArea]:
    """The images in which a class covers an unusual share, the strangest first; `shares` (> 0) by class and image."""
    found = []
    for class_id, of_images in shares.items():
        if len(of_images) < FEWEST:
            continue
        logarithms = {image: math.log(share) for image, share in of_images.items()}
        middle = median(logarithms.values())
        distance = SPREADS * 1.48 * median(abs(value - middle) for value in logarithms.values())
        least = max(math.log(TIMES), distance)
        found += [
            (abs(value - middle), OddArea(image, class_id, of_images[image], math.exp(middle)))
            for image, value in logarithms.items()
            if abs(value - middle) >= least
        ]
    return [one for _, one in sorted(found, key=lambda item: -item[0])]


def together(samples: Sequence[Sample]) -> dict[tuple[int, int], int]:
    """The number of images that show two classes at once, by their ids, the smaller first."""
    counts: dict[tuple[int, int], int] = {}
    for sample in samples:
        ids = sorted(sample.class_ids or ())
        for place, first in enumerate(ids):
            for second in ids[place + 1 :]:
                counts[first, second] = counts.get((first, second), 0) + 1
    return counts


def disagreement(path: Path, samples: Sequence[Sample], most: int) -> list[tuple[str, float]]:
    """How far merged networks disagree about each of at most `most` images, 0..1, most first.

    It is 1 less the maximum of the merged map, of the class with the least: a mean of maps whose maxima are 1 reaches 1
    only where all have theirs. Images without classes, and maps that are no mean of such maps, are left out.
    """
    found = []
    with CamStore.open(path) as store:
        known = set(store.names)
        for sample in spread([sample for sample in samples if sample.id in known], most):
            stored = store.read(sample.id)
            if stored.normalized and len(stored.cam):
                found.append((sample.id, max(0.0, 1 - float(stored.cam.flatten(1).amax(dim=1).min()))))
    return sorted(found, key=lambda item: -item[1])
