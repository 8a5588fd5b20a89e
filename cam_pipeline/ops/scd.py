"""Losses and labels of a single stage that classifies and segments together, as in TSCD.

Sources: TSCD, Xu et al., "Self Correspondence Distillation for End-to-End Weakly-Supervised Semantic Segmentation",
AAAI 2023 (arXiv 2302.13765); its loss of correspondence is that of STEGO, Hamilton et al., ICLR 2022 (arXiv
2203.08414); its loss of affinity is that of AFA, Ru et al., CVPR 2022 (arXiv 2203.02664).
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.cam import normalize_cam, resize_cam
from cam_pipeline.ops.dtypes import at_least_float32
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.labels import merge_high_low
from cam_pipeline.ops.losses import checked_labels
from cam_pipeline.ops.refine import local_refine
from cam_pipeline.ops.teacher import within

CENTERINGS = ("batch", "image", "none")
SHORTEST = 1e-10
"""Vectors shorter than this are not stretched to length 1, so that a zero vector stays one. Source: STEGO."""


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Half the mean cross entropy over background pixels, and half that over pixels of classes.

    Shapes and errors as in `segmentation_loss`. A half without pixels counts 0; if all are ignored the loss is 0, with
    a graph. Source: TSCD's released code, as specified; it balances labels of which most are background.
    """
    halves = balanced_halves(logits, labels, ignore_index)
    return halves[0] + halves[1]


def balanced_halves(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """The two terms of `balanced_cross_entropy`: of background, and of classes."""
    logits, labels = checked_labels(logits, labels, ignore_index)
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    background = labels == 0
    objects = ~background & (labels != ignore_index)
    first, second = (torch.where(half, each, 0).sum() / (2 * half.sum().clamp(min=1)) for half in (background, objects))
    return first, second


def random_coordinates(
    batch: int, side: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Places to sample, (batch, side, side, 2): x, then y, each drawn evenly from -1..1."""
    drawn_on = device if generator is None else generator.device
    return (2 * torch.rand(batch, side, side, 2, generator=generator, device=drawn_on) - 1).to(device)


def coordinates_within(coordinates: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Places (B, s, t, 2) in -1..1 brought into the box of each image, so that none lies in its padding.

    `boxes` (B, 4): top, left, bottom, right in pixels of an image of `size` (H, W); what reaches beyond it is cut off.
    Raises ValueError for other shapes.
    """
    if boxes.shape != (len(coordinates), 4) or coordinates.ndim != 4 or coordinates.shape[3] != 2:
        shapes = f"{tuple(coordinates.shape)} and {tuple(boxes.shape)}"
        raise ValueError(f"coordinates (B, s, t, 2) and boxes (B, 4) do not fit: {shapes}")
    height, width = size
    top, left, bottom, right = boxes.to(coordinates).unbind(dim=1)
    first = torch.stack([left / width, top / height], dim=1).clamp(0, 1)
    last = torch.stack([right / width, bottom / height], dim=1).clamp(0, 1)
    shares = torch.lerp(first[:, None, None], last[:, None, None], (coordinates + 1) / 2)
    return (2 * shares - 1).clamp(-1, 1)  # rounding may lead out


def correspondence_loss(
    cam_a: Tensor,
    cam_b: Tensor,
    logits_a: Tensor,
    logits_b: Tensor,
    coords_a: Tensor,
    coords_b: Tensor,
    shift: float = 0.0,
    centering: str = "batch",
    chunk: int = 256,
) -> Tensor:
    """Answers at two places should be alike as far as the class maps are: -mean(max(S, 0) * (F - shift)).

    F and S are the cosines between a place in view a and one in view b, of the maps `cam_*` (B, C, h, w) and of the
    answers `logits_*` (B, K, h, w); the four grids may differ. Places are `coords_*` (B, s, t, 2) in -1..1, x then y
    (-1 and 1: the middle of the first and last cell), read bilinearly; every place of a is compared with every one of
    b. `centering`: from each row of F (a place of a) its mean is subtracted, and the mean of all F is added, over the
    `batch` or each `image`; `none`: F as it is.

    F is a target: no gradient reaches the maps. With shift 0 a segmentation that gives all pixels the same answer is
    as good as the perfect one, or better; the perfect one is better if the shift exceeds the mean of the centred F
    over pairs of different classes. At most `chunk` rows of F and S are held at a time; gradients of gradients are not
    there. Raises ValueError for other shapes or ranges, or another centering.
    """
    maps = [at_least_float32(map_, name) for map_, name in ((cam_a, "cam_a"), (cam_b, "cam_b"))]
    answers = [at_least_float32(map_, name) for map_, name in ((logits_a, "logits_a"), (logits_b, "logits_b"))]
    _check_pair(maps, "cam_a and cam_b (B, C, h, w)")
    _check_pair(answers, "logits_a and logits_b (B, K, h, w)")
    if len(maps[0]) != len(answers[0]):
        raise ValueError(f"maps and logits must be of one batch, not of {len(maps[0])} and {len(answers[0])} images")
    for coords in (coords_a, coords_b):
        _check_coordinates(coords, len(maps[0]))
    if centering not in CENTERINGS:
        raise ValueError(f"centering must be one of {', '.join(CENTERINGS)}, not {centering!r}")
    if not math.isfinite(shift) or chunk < 1:
        raise ValueError(f"shift must be finite and chunk 1 or more, but they are {shift} and {chunk}")
    with torch.autocast(cam_a.device.type, enabled=False):  # it would lower the products to half precision
        with torch.no_grad():
            first, second = (_sampled(map_, at) for map_, at in zip(maps, (coords_a, coords_b), strict=True))
            first, second = first.to(answers[0].dtype), second.to(answers[0].dtype)
            offset = first.new_full((len(first), 1, 1), -shift)
            if centering != "none":
                mean = second.mean(dim=1, keepdim=True)
                of_images = (first.mean(dim=1, keepdim=True) * mean).sum(dim=2, keepdim=True)  # mean of F
                offset = offset + (of_images if centering == "image" else of_images.mean())
                second = second - mean
        codes = [_sampled(map_, at) for map_, at in zip(answers, (coords_a, coords_b), strict=True)]
        loss: Tensor = _Correspondence.apply(codes[0], codes[1], first, second, offset, chunk)
    return loss


class _Correspondence(torch.autograd.Function):
    """-mean(max(S, 0) * T) with S = a b^T and the constant T = c d^T + offset, a chunk of rows at a time.

    a, c (B, P, .); b, d (B, Q, .); offset (B, 1, 1). The pass that makes the loss also makes its gradients, so that no
    product is kept or made again.
    """

    @staticmethod
    def forward(
        ctx: Any, one: Tensor, other: Tensor, first: Tensor, second: Tensor, offset: Tensor, chunk: int
    ) -> Tensor:
        learns = any(ctx.needs_input_grad[:2])
        share = -1 / (len(one) * one.shape[1] * other.shape[1])
        total = one.new_zeros(())
        to_one, to_other = (torch.zeros_like(code) if learns else code.new_empty(0) for code in (one, other))
        for start in range(0, one.shape[1], chunk):
            rows = slice(start, start + chunk)
            likeness = one[:, rows] @ other.transpose(1, 2)
            target = torch.baddbmm(offset, first[:, rows], second.transpose(1, 2))
            target.masked_fill_(likeness <= 0, 0)
            if learns:
                to_one[:, rows] = target @ other
                to_other.baddbmm_(target.transpose(1, 2), one[:, rows])
            total += likeness.mul_(target).sum()
        ctx.save_for_backward(to_one, to_other)
        ctx.share = share
        return total * share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_one, to_other = ctx.saved_tensors
        scale = gradient * ctx.share
        return scale * to_one, scale * to_other, None, None, None, None


def _sampled(maps: Tensor, coordinates: Tensor) -> Tensor:
    """Vectors of length 1 (B, P, C) of maps (B, C, h, w) at P places (B, s, t, 2)."""
    read = F.grid_sample(
        maps, coordinates.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=True
    ).flatten(2)
    return F.normalize(read, dim=1, eps=SHORTEST).transpose(1, 2)


def online_maps(maps: Tensor, class_labels: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """Raw class maps (B, C, h, w) as scores in 0..1: the positive part, min-max normalised for each image and class.

    `class_labels` (B, C): maps of classes at 0 become zero; a NaN (nobody labelled the image) keeps the map. None keeps
    all. A map whose maximum is below `floor` becomes zero: a crop need not show every object of its image, and the
    normalisation would give each class a peak near 1. Raises ValueError for other shapes or a negative floor.
    """
    if maps.ndim != 4 or 0 in maps.shape[-2:]:
        raise ValueError(f"maps must be (B, C, h, w) with a grid that is not empty, not {tuple(maps.shape)}")
    if not floor >= 0:
        raise ValueError(f"floor must not be negative, but is {floor}")
    positive = at_least_float32(maps, "maps").relu()
    scores = normalize_cam(positive, "minmax")
    kept = positive.amax(dim=(-2, -1)) >= floor
    if class_labels is not None:
        kept = kept & _possible(class_labels, maps)
    return scores.masked_fill(~kept[:, :, None, None], 0)


def _possible(class_labels: Tensor, maps: Tensor) -> Tensor:
    """(B, C) bool: True for classes that an image has, and for all of an image that nobody labelled (NaN)."""
    if class_labels.shape != maps.shape[:2]:
        shapes = f"{tuple(class_labels.shape)} and {tuple(maps.shape)}"
        raise ValueError(f"class_labels (B, C) and maps (B, C, h, w) do not fit: {shapes}")
    return class_labels != 0


def with_rest(maps: Tensor) -> Tensor:
    """Prepend the background 1 - max over classes: maps (B, C, h, w) in 0..1 -> (B, 1 + C, h, w).

    Without it, background is a zero vector, which `correspondence_loss` pulls towards every class.
    """
    return torch.cat([1 - maps.amax(dim=1, keepdim=True), maps], dim=1)


@torch.no_grad()
def refined_labels(
    image: Tensor,
    maps: Tensor,
    class_labels: Tensor,
    low: float,
    high: float,
    kernel: str = "varm",
    iterations: int = 10,
    boxes: Tensor | None = None,
    sigma_floor: float = 0.0,
) -> Tensor:
    """Labels (B, H, W) uint8 with an ignore band, from maps (B, C, h, w) in 0..1 and images (B, 3, H, W) in 0..1.

    Maps of another size are resized to the image. Twice, with the background scores `low` and `high`, background and
    the classes of the image (`class_labels` (B, C) is not 0; NaN: nobody labelled the image, all classes) go through a
    softmax and `local_refine`, and each pixel takes its best; the background wins ties. `merge_high_low` makes one map
    of both: class c + 1 for channel c, 0 or IGNORE_INDEX. `boxes` (B, 4) integers, top, left, bottom, right in pixels
    of the image: what lies outside is padding, influences nothing and is IGNORE_INDEX; a box may reach beyond the
    image. Raises ValueError for other shapes or ranges, or an unknown kernel.
    """
    if maps.ndim != 4 or image.ndim != 4 or len(maps) != len(image) or 0 in maps.shape:
        raise ValueError(
            f"maps and image must be (B, C, h, w) and (B, 3, H, W), not {tuple(maps.shape)} and {tuple(image.shape)}"
        )
    if not 0 <= low <= high <= 1:
        raise ValueError(f"background scores must satisfy 0 <= low <= high <= 1, but low is {low} and high {high}")
    if boxes is not None and boxes.shape != (len(image), 4):
        raise ValueError(f"boxes must be ({len(image)}, 4), not {tuple(boxes.shape)}")
    size = (image.shape[2], image.shape[3])
    present = _possible(class_labels, maps)
    valid = None if boxes is None else within(boxes.to(image.device), *size)
    most = int(present.sum(dim=1).max())
    if most == 0:
        labels = torch.zeros(len(image), *size, dtype=torch.uint8, device=image.device)
    else:
        taken = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        scores = maps.gather(1, taken[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
        scores = resize_cam(at_least_float32(scores, "maps"), size)
        absent = ~present.gather(1, taken)[:, :, None, None]
        refined = local_refine(
            image,
            torch.cat([_shares(scores, absent, background) for background in (high, low)], dim=1),
            kernel,
            iterations,
            sigma_floor=sigma_floor,
            renormalize=True,
            valid=None if valid is None or bool(valid.all()) else valid[:, None],
        )
        labels = merge_high_low(*(_best(part, taken) for part in refined.chunk(2, dim=1)))
    return labels if valid is None else labels.masked_fill_(~valid, IGNORE_INDEX)


def _shares(scores: Tensor, absent: Tensor, background: float) -> Tensor:
    """Softmax of the classes' scores (B, n, H, W) beside a constant background, which is left out; 0 for the absent."""
    weights = scores.exp().masked_fill(absent, 0)
    return weights / (math.exp(background) + weights.sum(dim=1, keepdim=True))


def _best(shares: Tensor, taken: Tensor) -> Tensor:
    """Labels (B, H, W) uint8 from refined shares (B, n, H, W) of the classes `taken` (B, n).

    Background has the rest of 1, as renormalised weights keep a constant and channels do not interact: it need not be
    refined. Absent classes have 0, which never wins, as the others sum to 1.
    """
    best, channel = shares.max(dim=1)
    ids = (taken + 1).to(torch.uint8)
    named = ids.gather(1, channel.flatten(1)).view_as(channel)
    return torch.where(best > 1 - shares.sum(dim=1), named, 0)


def affinity_targets(labels: Tensor, radius: int, ignore_index: int = 255) -> Tensor:
    """Whether two cells have the same label: labels (B, h, w) -> (B, N, N) uint8 of 1, 0 and `ignore_index`, N = h * w.

    Cells are numbered row by row. A pair is ignored if either label is, or if the cells are more than `radius` rows or
    columns apart. Two cells of background count as the same, and so does a cell with itself. Raises ValueError for
    another shape, type or radius, and unless `ignore_index` is in 2..255.
    """
    if labels.ndim != 3 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers (B, h, w), not {labels.dtype} {tuple(labels.shape)}")
    if radius < 0 or not 2 <= ignore_index <= 255:
        message = "radius must not be negative and ignore_index in 2..255"
        raise ValueError(f"{message}, but they are {radius} and {ignore_index}")
    flat = labels.flatten(1)
    known = flat != ignore_index
    counted = known[:, :, None] & known[:, None] & _near(*labels.shape[1:], radius, labels.device)
    same = flat[:, :, None] == flat[:, None]
    return torch.where(counted, same.to(torch.uint8), ignore_index)


@lru_cache(maxsize=8)
def _near(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    """(N, N) bool: True for cells at most `radius` rows and columns apart."""
    rows, columns = (torch.arange(length, device=device) for length in (height, width))
    beside = (rows[:, None] - rows).abs() <= radius, (columns[:, None] - columns).abs() <= radius
    return (beside[0][:, None, :, None] & beside[1][None, :, None, :]).reshape(height * width, height * width)


def affinity_loss(predicted: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Half of what pairs of one label lack to 1, and half of what pairs of two labels have above 0.

    `predicted` (B, N, N) in 0..1; `target` as `affinity_targets` gives it. With sums and counts over the batch:
    0.5 * sum(1 - p) / (pairs at 1, plus 1) + 0.5 * sum(p) / (pairs at 0, plus 1). No pair gives 0, with a graph. Raises
    ValueError for other shapes, values of `predicted` outside 0..1, and targets but 0, 1 and `ignore_index`. Source:
    AFA.
    """
    predicted = at_least_float32(predicted, "predicted")
    if predicted.ndim != 3 or predicted.shape != target.shape:
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predicted and target must both be (B, N, N), not {shapes}")
    same, different = target == 1, target == 0
    if not (same | different | (target == ignore_index)).all():
        raise ValueError(f"target must be 0, 1 or {ignore_index}")
    if predicted.numel():
        least, most = predicted.detach().aminmax()
        if least < 0 or most > 1:
            raise ValueError(f"predicted must be in 0..1, not {least.item()} to {most.item()}")
    lacking = torch.where(same, 1 - predicted, 0).sum() / (same.sum() + 1)
    return 0.5 * (lacking + torch.where(different, predicted, 0).sum() / (different.sum() + 1))


def _check_pair(maps: list[Tensor], names: str) -> None:
    """Raise ValueError unless both maps have four dimensions, and the same images and channels."""
    if any(map_.ndim != 4 or 0 in map_.shape for map_ in maps) or maps[0].shape[:2] != maps[1].shape[:2]:
        shapes = " and ".join(str(tuple(map_.shape)) for map_ in maps)
        raise ValueError(f"{names} must not be empty, and have the same images and channels, not {shapes}")


def _check_coordinates(coordinates: Tensor, batch: int) -> None:
    """Raise ValueError unless these are places (batch, s, t, 2) in -1..1."""
    if coordinates.ndim != 4 or coordinates.shape[0] != batch or coordinates.shape[3] != 2 or 0 in coordinates.shape:
        raise ValueError(f"coordinates must be ({batch}, s, t, 2) and not empty, not {tuple(coordinates.shape)}")
    if not coordinates.abs().amax() <= 1:
        raise ValueError("coordinates must lie in -1..1")
