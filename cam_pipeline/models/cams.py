"""Read class activation maps out of a classifier, over scales and flips."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.models.attention import Affinity, attention_hooked, attention_modules, block_indices
from cam_pipeline.models.classifier import Classifier, ClassifierOutput
from cam_pipeline.models.comparison import Border, FeatureWalk, cell_features, compare_cells
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.levels import LevelTap, feature_levels
from cam_pipeline.models.sfc import Calibration, CalibrationHead
from cam_pipeline.ops.acr import class_token_map, propagate_attention
from cam_pipeline.ops.cam import classifier_cam, normalize_cam, place_view

ClassIds = tuple[int, ...]


@dataclass(frozen=True)
class Propagation:
    """Propagation of maps by the network's own attention, its mean over `blocks` (none named: all), `steps` times."""

    blocks: tuple[int, ...] = ()
    steps: int = 1
    normalize: bool = False


@dataclass(frozen=True)
class CamReading:
    """How maps are read.

    `source`: `classifier_weights` (CAM) or `class_token_gradient` (ACR: function `map_function` of the attention of the
    blocks from `start_layer` on, negative: from the end). `propagation`: None, or how maps are propagated.
    `calibration`: None, or how `calibrated_cams` calibrates them. `border`: None, or how the background is told that is
    taken away from them.

    Walk and border compare the features of the deepest `levels` stages, each brought to unit length, so that the cosine
    is nearly the mean of theirs. They are not what some CNNs make of the deepest one for the classifier, which is
    positive everywhere.
    """

    source: str = "classifier_weights"
    map_function: str = "grad"
    start_layer: int = -2
    propagation: Propagation | FeatureWalk | None = None
    calibration: Calibration | None = None
    border: Border | None = None
    levels: int = 1

    @property
    def by_gradient(self) -> bool:
        return self.source == "class_token_gradient"

    @property
    def attention(self) -> Propagation | None:
        return self.propagation if isinstance(self.propagation, Propagation) else None

    @property
    def walk(self) -> FeatureWalk | None:
        return self.propagation if isinstance(self.propagation, FeatureWalk) else None

    @property
    def compares(self) -> bool:
        """Whether features are compared."""
        return self.walk is not None or self.border is not None

    def check(self, classifier: Classifier) -> None:
        """Raise ValueError (NoAttention for a CNN) when this classifier's maps can not be read so."""
        if self.calibration is not None or self.compares:
            count = len(feature_levels(classifier.backbone))
            if self.compares and self.levels > count:
                raise ValueError(f"{self.levels} stages are to be compared, but the network has {count}")
        if not self.by_gradient and self.attention is None:
            return
        count = len(attention_modules(classifier))
        block_indices(count, self.attention.blocks if self.attention else ())
        if self.by_gradient:
            block_indices(count, (self.start_layer,))
            if classifier.pooling != "class_token":
                raise ValueError("its logits are not read from the class token, so they have no gradient there")


@torch.inference_mode(False)  # else nothing made inside could have a gradient
@torch.no_grad()
def multi_scale_cams(
    classifier: Classifier,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    reading: CamReading = CamReading(),
    class_ids: Sequence[ClassIds | None] | None = None,
    threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Class maps and class probabilities of a batch: images (B, 3, H, W) in 0..1, sides multiples of the stride.

    Returns (B, C, h, w) >= 0, the mean of a scale's two views summed over scales, on the grid of scale 1 and placed as
    the network's cells lie, not normalised; and (B, C) in 0..1, the mean over views. Where features are compared
    (`models.comparison`), on the grid of the largest scale. Scaled sides are rounded to whole cells, so that every grid
    covers the image exactly.

    Present classes are the 1-based `class_ids` of each image, or those predicted above `threshold` where they are None.
    Gradients are taken for them only, and the maps of the others are then zero; only they claim parts of the border.
    """
    images = images.clone() if images.is_inference() else images
    views, ranks, likely = list(scaled_views(images, classifier.stride, scales, flip)), None, None
    finest, features = finest_view(views), None
    grid = cells_of(views[finest][0] if reading.compares else images, classifier.stride)
    if reading.by_gradient:
        known, likely = _classes_before_maps(classifier, views, class_ids, threshold)
        ranks = class_ranks(known, images.device)
    maps, probabilities = [], []
    for number, (view, flipped) in enumerate(views):
        looks = reading.compares and number == finest
        tap = LevelTap(classifier.backbone, classifier.prefix_tokens) if looks else None
        with tap or nullcontext():
            raw, output = view_maps(classifier, view, reading, ranks)
        if tap is not None:
            features = cell_features(tap.take(grid)[-reading.levels :], grid, classifier.offset)
        maps.append(place_view(raw, grid, classifier.offset, flipped))
        probabilities.append(output.logits.float().sigmoid())
    chances = torch.stack(probabilities).mean(dim=0) if likely is None else likely  # those that chose the classes
    merged = torch.stack(maps).sum(dim=0) / (2 if flip else 1)
    if features is None:
        return merged, chances
    shown = shown_classes(class_ids, chances, threshold)
    present = presence(shown, classifier.head.out_features, images.device)
    return compare_cells(merged, features, present, reading.walk, reading.border), chances


@torch.inference_mode(False)
@torch.no_grad()
def calibrated_cams(
    classifier: Classifier,
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    reading: CamReading,
    class_ids: Sequence[ClassIds | None] | None = None,
    threshold: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classifier maps and prototype maps with background, and class probabilities; arguments as `multi_scale_cams`.

    Returns (B, 1 + C, h, w) >= 0 twice, background first, summed over scales as there, and (B, C). The maps of absent
    classes are zero and have no say in the background or the prototypes. The side features are those that the
    classifier learned (objective SFC), else its stages' own. A walk spreads the calibrated maps of the classes, and
    the border takes from them; the backgrounds stay. Source: SFC (AAAI 2024), specification section 6, but every view
    is calibrated by itself, so that its cells need not coincide with those of the mirrored one.
    """
    calibration = reading.calibration or Calibration()
    images = images.clone() if images.is_inference() else images
    views = list(scaled_views(images, classifier.stride, scales, flip))
    finest, compared = finest_view(views), None
    grid = cells_of(views[finest][0] if reading.compares else images, classifier.stride)
    known, likely = _classes_before_maps(classifier, views, class_ids, threshold)
    present = presence(known, classifier.head.out_features, images.device)
    ranks = class_ranks(known, images.device)
    head = classifier.calibration or CalibrationHead()
    owns, prototypes, probabilities = [], [], []
    for number, (view, flipped) in enumerate(views):
        with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
            raw, (features, logits) = view_maps(classifier, view, reading, ranks)
        levels = tap.take(features.shape[-2:])
        if reading.compares and number == finest:
            compared = cell_features(levels[-reading.levels :], grid, classifier.offset)
        if reading.by_gradient:
            raw = normalize_cam(raw, eps=0.0)  # gradients may be that small
        own = head.classifier_maps(raw, classifier.normalize(view), levels[-1], present, calibration)
        prototype = head.prototype_maps(own, levels, present, calibration)
        owns.append(place_view(own, grid, classifier.offset, flipped))
        prototypes.append(place_view(prototype, grid, classifier.offset, flipped))
        probabilities.append(logits.float().sigmoid())
    chances = torch.stack(probabilities).mean(dim=0) if likely is None else likely
    own, prototype = (torch.stack(kind).sum(dim=0) / (2 if flip else 1) for kind in (owns, prototypes))
    if compared is None:
        return own, prototype, chances
    for maps in (own, prototype):
        maps[:, 1:] = compare_cells(maps[:, 1:], compared, present, reading.walk, reading.border)
    return own, prototype, chances


def cells_of(images: Tensor, stride: int) -> tuple[int, int]:
    """The grid (h, w) of images (B, 3, H, W)."""
    return images.shape[-2] // stride, images.shape[-1] // stride


def finest_view(views: Sequence[tuple[Tensor, bool]]) -> int:
    """Number of the view with most pixels, the first of these: features are compared in it."""
    return max(range(len(views)), key=lambda number: views[number][0].shape[-2:].numel())


def view_maps(
    classifier: Classifier, images: Tensor, reading: CamReading, ranks: Tensor | None = None
) -> tuple[Tensor, ClassifierOutput]:
    """Raw maps (B, C, h, w) of one view, and what the classifier gave: images (B, 3, H, W) as `Classifier` takes them.

    Propagation by attention is done, what compares features is not. `ranks` as `class_ranks` gives them, for maps by
    gradient. The classifier looks in evaluation mode and is left as it came.
    """
    affinity, propagation = Affinity(classifier.prefix_tokens), reading.attention
    if reading.by_gradient:
        if ranks is None:
            raise ValueError("maps by gradient need the classes to read")
        with evaluating(classifier):
            maps, output = _class_token_maps(classifier, images, reading, ranks, affinity)
    else:
        with evaluating(classifier), _seen_by(affinity, classifier, propagation):
            output = classifier(images)
        maps = classifier_cam(output.features, classifier.head.weight)
    if propagation is not None:
        # A patch gathers evidence for a class, not against it.
        flat = maps.flatten(2).relu()
        maps = propagate_attention(flat, affinity.mean, propagation.steps, propagation.normalize).view_as(maps)
    return maps, output


def presence(class_ids: Sequence[ClassIds], num_classes: int, device: torch.device) -> Tensor:
    """(B, C) 0/1: which classes each image shows."""
    present = torch.zeros(len(class_ids), num_classes, device=device)
    for row, ids in zip(present, class_ids, strict=True):
        row[[class_id - 1 for class_id in ids]] = 1
    return present


def class_ranks(class_ids: Sequence[ClassIds], device: torch.device) -> Tensor:
    """(B, R) 0-based classes: column r holds every image's r-th present class, -1 where it has fewer."""
    most = max((len(ids) for ids in class_ids), default=0)
    rows = [[class_id - 1 for class_id in ids] + [-1] * (most - len(ids)) for ids in class_ids]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(class_ids), most)


def predicted_classes(probabilities: Tensor, threshold: float) -> ClassIds:
    """1-based ids of the classes whose probability (C,) exceeds `threshold`; at least the likeliest one."""
    chosen = {int(index) + 1 for index in (probabilities > threshold).nonzero().flatten()}
    return tuple(sorted(chosen | {int(probabilities.argmax()) + 1}))


def shown_classes(
    class_ids: Sequence[ClassIds | None] | None, probabilities: Tensor, threshold: float
) -> list[ClassIds]:
    """The classes of every image: as known, else those that `probabilities` (B, C) predict."""
    known: Sequence[ClassIds | None] = [None] * len(probabilities) if class_ids is None else class_ids
    pairs = zip(known, probabilities, strict=True)
    return [predicted_classes(likely, threshold) if ids is None else ids for ids, likely in pairs]


def _classes_before_maps(
    classifier: Classifier,
    views: Sequence[tuple[Tensor, bool]],
    class_ids: Sequence[ClassIds | None] | None,
    threshold: float,
) -> tuple[list[ClassIds], Tensor | None]:
    """The classes of every image, predicted where unknown, and the probabilities (B, C) that took; None: all known."""
    if class_ids is not None and None not in class_ids:
        return [ids or () for ids in class_ids], None
    with evaluating(classifier):
        likely = torch.stack([classifier(view).logits.float().sigmoid() for view, _ in views]).mean(dim=0)
    return shown_classes(class_ids, likely, threshold), likely


def scaled_views(images: Tensor, stride: int, scales: Sequence[float], flip: bool) -> Iterator[tuple[Tensor, bool]]:
    """Every scale of a batch (B, 3, H, W), sides in whole cells, and each mirrored left to right; channels last."""
    rows, columns = images.shape[-2] // stride, images.shape[-1] // stride
    for scale in scales:
        size = (max(1, round(rows * scale)) * stride, max(1, round(columns * scale)) * stride)
        scaled = (
            images
            if size == tuple(images.shape[-2:])
            else F.interpolate(images, size, mode="bilinear", align_corners=False)
        )
        for flipped in (False, True) if flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            yield view.contiguous(memory_format=torch.channels_last), flipped


def _seen_by(
    affinity: Affinity, classifier: Classifier, propagation: Propagation | None
) -> AbstractContextManager[None]:
    """Inside, `affinity` sees the attention of the blocks by which maps are to be propagated."""
    if propagation is None:
        return nullcontext()
    return attention_hooked(classifier, propagation.blocks, lambda block, attention: affinity.see(attention))


def _class_token_maps(
    classifier: Classifier, images: Tensor, reading: CamReading, ranks: Tensor, affinity: Affinity
) -> tuple[Tensor, ClassifierOutput]:
    """Maps of the classes in `ranks`, zero elsewhere, from the gradients of their logits.

    One gradient pass serves a rank of all images, since no image's logit depends on another image. The graph begins
    at the attention of block `start_layer`: what lies before is computed without.
    """
    count = len(attention_modules(classifier))
    start = reading.start_layer % count
    of_affinity = set(block_indices(count, reading.attention.blocks)) if reading.attention else set()
    attentions: list[Tensor] = []

    def hook(block: int, attention: Tensor) -> Tensor | None:
        if block in of_affinity:
            affinity.see(attention)
        if block < start:
            return None
        if block == start:
            attention = attention.detach().requires_grad_()
            torch.set_grad_enabled(True)  # until the `no_grad` around the forward pass ends
        attentions.append(attention)
        return attention

    with torch.no_grad(), attention_hooked(classifier, sorted({*of_affinity, *range(start, count)}), hook):
        features, logits = classifier(images)
    precision = torch.promote_types(features.dtype, torch.float32)
    maps = features.new_zeros((*logits.shape, *features.shape[-2:]), dtype=precision)
    for rank, classes in enumerate(ranks.unbind(dim=1)):
        present = (classes >= 0).nonzero().flatten()
        with torch.enable_grad():
            chosen = logits[present, classes[present]].sum()
        gradients = torch.autograd.grad(chosen, attentions, retain_graph=rank + 1 < ranks.shape[1])
        found = class_token_map(attentions, gradients, reading.map_function, classifier.prefix_tokens)
        maps[present, classes[present]] = found[present].view(-1, *maps.shape[2:])
    return maps, ClassifierOutput(features.detach(), logits.detach())
