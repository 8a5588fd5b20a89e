"""Per-pixel scores and labels of one image from its class activation maps."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.config import RefineSettings, RunSettings
from cam_pipeline.data.images import UInt8
from cam_pipeline.errors import DataError
from cam_pipeline.machine.crf_backend import crf_backend, threads_per_image
from cam_pipeline.machine.device import is_memory_error, pick_device
from cam_pipeline.ops.cam import cam_scores, resize_cam, to_probabilities, with_background
from cam_pipeline.ops.crf import dense_crf, dense_crf_batch
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.mean_field import forget_lattices
from cam_pipeline.ops.refine import local_refine
from cam_pipeline.refinement.clicks import fixed_at_marks, marked_channels, spreads, with_marks_spread
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.scores import StoredScores

logger = logging.getLogger(__name__)

ReadImage = Callable[[], UInt8]
Result = TypeVar("Result")
CPU = torch.device("cpu")

THRESHOLDS = torch.arange(100) / 100
"""Background scores of a sweep: 0, 0.01 ... 0.99."""
HIGHEST = 0.99
"""Highest background score in use, as at 1 no class could win; the lowest is 1 - HIGHEST."""
FEWEST_PIXELS = 10_000
"""An image is not refined at fewer pixels than this for lack of memory: it would be of no use."""


def placed(settings: RefineSettings, run: RunSettings, threads: int = 0) -> tuple[RefineSettings, torch.device]:
    """The settings with the backend that computes the CRF on this machine, and the device that refines.

    That is the device of `run`, but the CPU for pydensecrf. `threads` of torch work on an image; 0: as many as in
    `refine_cams`. Errors as in `crf_backend`.
    """
    device = pick_device(run)
    if not settings.crf:
        return settings, device
    backend = crf_backend(settings.crf_backend, device.type, threads or threads_per_image(run))
    logger.info("the CRF is computed by %s (%s)", backend.name, backend.why)
    settings = settings.model_copy(update={"crf_backend": backend.name})
    return settings, CPU if backend.name == "pydensecrf" else device


def class_scores(cam: StoredCam, settings: RefineSettings) -> tuple[Tensor, Tensor]:
    """Scores of the present classes before refinement, (n, H, W) in 0..1, and (H, W) to add to the background score.

    Calibrated maps: the mean of classifier and prototype maps, weighted by `prototype_share`, and `background_map`
    times the same mean of their backgrounds. Other maps: the maps, and zero. Every map is divided by its maximum first
    (see `normalize`), except merged maps: they are means of such maps. Source: SFC (arXiv 2401.11719), specification
    section 6: with a background of .2 a class wins if fg > .5 bg + .2.
    """
    if cam.normalized:
        return resize_cam(cam.cam, cam.size), cam.cam.new_zeros(cam.size)
    scores = cam_scores(cam.cam, cam.size, settings.normalize)
    if cam.background is None or cam.prototype is None:
        return scores, scores.new_zeros(cam.size)
    share = settings.prototype_share
    prototypes = cam_scores(cam.prototype[1:], cam.size, settings.normalize)
    background, of_prototypes = cam_scores(torch.stack([cam.background, cam.prototype[0]]), cam.size)
    merged = torch.lerp(background, of_prototypes, share)
    return torch.lerp(scores, prototypes, share), settings.background_map * merged


def best_class(cam: StoredCam, settings: RefineSettings) -> tuple[Tensor, Tensor]:
    """The id (H, W) of every pixel's best class before refinement, and its score (H, W) in 0..1.

    The class wins if its score exceeds the background score. An image without classes has ids and scores of 0.
    """
    if not cam.class_ids:
        nothing = cam.cam.new_zeros(cam.size)
        return nothing.long(), nothing
    scores, beside = class_scores(cam, settings)
    score, channel = scores.max(dim=0)
    return torch.tensor(cam.class_ids, device=channel.device)[channel], (score - beside).clamp_min(0)


def smoothed_scores(
    cams: Sequence[StoredCam], images: Callable[[], Tensor], settings: RefineSettings
) -> list[tuple[Tensor, Tensor]]:
    """`class_scores` of images of one size, after local refinement, if `kernel` asks for one.

    If marks spread (`refinement.clicks.spreads`), both are probabilities, which hold the background score already. The
    kernels are linear and, renormalised, keep constants, so the constant background score need not be refined.
    `images` as in `_scores_at`.
    """
    found = [_spread_scores(cam, settings) if spreads(cam) else class_scores(cam, settings) for cam in cams]
    shown = [place for place, cam in enumerate(cams) if cam.class_ids]
    if settings.kernel == "none" or not shown:
        return found
    whole_size = cams[0].size
    guide = images().movedim(-1, 1).float() / 255
    factor = min(settings.kernel_guide, reduction(whole_size, settings))
    size = [max(1, round(side * factor)) for side in whole_size]
    both = [torch.cat([found[place][0], found[place][1][None]]) for place in shown]
    stacked = guide.new_zeros(len(shown), max(map(len, both)), *size)  # a channel that an image lacks stays 0
    fixed = torch.zeros_like(stacked[:, :1], dtype=torch.bool)
    for target, still, place, maps in zip(stacked, fixed, shown, both, strict=True):
        target[: len(maps)] = F.interpolate(maps[None], size, mode="area")[0]
        channels = marked_channels(cams[place], (size[0], size[1]), guide.device)
        if channels is not None:
            still[0] = channels >= 0
            # Here the background comes last.
            target[: len(maps)] = fixed_at_marks(target[: len(maps)].roll(1, dims=0), channels).roll(-1, dims=0)
    refined = local_refine(
        F.interpolate(guide, size, mode="area"),
        stacked,
        settings.kernel,
        settings.kernel_iterations,
        sigma_floor=settings.kernel_sigma_floor,
        renormalize=True,
        fixed=fixed if fixed.any() else None,
    )
    for place, maps, changed in zip(shown, both, refined, strict=True):
        whole = F.interpolate(changed[None, : len(maps)], whole_size, mode="bilinear", align_corners=False)[0]
        whole.clamp_(0, 1)
        found[place] = whole[:-1], whole[-1]
    return found


def _spread_scores(cam: StoredCam, settings: RefineSettings) -> tuple[Tensor, Tensor]:
    """Probabilities of the classes (n, H, W) and of the background (H, W), after marks have spread."""
    classes, beside = class_scores(cam, settings)
    found = with_marks_spread(_probabilities(classes, beside, settings.background_score), cam)
    return found[1:], found[0]


def _probabilities(classes: Tensor, beside: Tensor, background: float) -> Tensor:
    """Probabilities (1 + n, H, W) from what `class_scores` gives, at a background score."""
    scores = with_background(classes, background)
    scores[0] += beside
    return to_probabilities(scores)


def refined_scores(
    cam: StoredCam, read_image: ReadImage, settings: RefineSettings, device: torch.device = CPU
) -> NDArray[np.float32]:
    """Local refinement, background score, then a dense CRF over the present classes: scores (1 + n, H, W), sum 1.

    `read_image` gives the image (H, W, 3) and is called once, and only if it is needed. What does not fit into memory
    is refined at fewer pixels, with a warning. Raises DataError if the image is not of `cam.size`, ValueError if the
    background score is still to be chosen.
    """

    def compute(settings: RefineSettings) -> NDArray[np.float32]:
        here = _to(cam, device)
        images = _stacked([cam], [read_image], device)
        (smoothed,) = smoothed_scores([here], images, settings)
        return _array(_scores_at(settings.background_score, [smoothed], [here], images, settings)[0])

    read_image = cache(read_image)
    return _fitting(compute, cam, settings)


def refined(
    cam: StoredCam, read_image: ReadImage, settings: RefineSettings, device: torch.device = CPU
) -> StoredScores:
    """Refined scores and other label maps: before refinement and, with `band`, at two more background scores.

    Arguments and errors as in `refined_scores`.
    """
    read_image = cache(read_image)
    return _fitting(lambda settings: _refined([cam], [read_image], settings, device)[0], cam, settings)


def refined_batch(
    cams: Sequence[StoredCam], read_images: Sequence[ReadImage], settings: RefineSettings, device: torch.device
) -> list[StoredScores]:
    """`refined` for several images of one size, together if they fit into memory."""
    read_images = [cache(read) for read in read_images]
    try:
        return _refined(cams, read_images, settings, device)
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
    forget_lattices()
    return [refined(cam, read, settings, device) for cam, read in zip(cams, read_images, strict=True)]


def _refined(
    cams: Sequence[StoredCam], read_images: Sequence[ReadImage], settings: RefineSettings, device: torch.device
) -> list[StoredScores]:
    """`refined_batch`, with an error if memory does not suffice."""
    images = _stacked(cams, read_images, device)
    cams = [_to(cam, device) for cam in cams]
    background = settings.background_score
    smoothed = smoothed_scores(cams, images, settings)
    labels = [{"unrefined": _unrefined(cam, settings)} for cam in cams]
    if settings.band:
        ends = {"high": min(background + settings.band, HIGHEST), "low": max(background - settings.band, 1 - HIGHEST)}
        for name, end in ends.items():
            for cam, maps, scores in zip(cams, labels, _scores_at(end, smoothed, cams, images, settings), strict=True):
                maps[name] = _array(complete_labels(scores, cam.class_ids))
    found = _scores_at(background, smoothed, cams, images, settings)
    return [
        StoredScores(cam.name, _array(scores), cam.class_ids, maps)
        for cam, scores, maps in zip(cams, found, labels, strict=True)
    ]


def _unrefined(cam: StoredCam, settings: RefineSettings) -> UInt8:
    """Labels (H, W) before kernel and CRF, but after marks have spread."""
    if spreads(cam):
        classes, background = _spread_scores(cam, settings)
        return complete_labels(_array(torch.cat([background[None], classes])), cam.class_ids)
    best, score = best_class(cam, settings)
    found: UInt8 = _array(torch.where(score > settings.background_score, best, 0).to(torch.uint8))
    return found


def _scores_at(
    background: float,
    smoothed: Sequence[tuple[Tensor, Tensor]],
    cams: Sequence[StoredCam],
    images: Callable[[], Tensor],
    settings: RefineSettings,
) -> list[Tensor]:
    """Scores (1 + n, H, W) of images of one size at a background score, from the result of `smoothed_scores`.

    `images` gives those that show a class (B, H, W, 3) uint8, and is called only if they are needed.
    """
    found = []
    for cam, (classes, beside) in zip(cams, smoothed, strict=True):
        if spreads(cam):  # only a band's ends differ from the score that is in already
            beside = (beside + background - settings.background_score).clamp_min(0)
            found.append(_probabilities(classes, beside, 0.0))
        else:
            found.append(_probabilities(classes, beside, background))
    shown = [place for place, cam in enumerate(cams) if cam.class_ids]
    if settings.crf and shown:
        factor = reduction(cams[0].size, settings)
        given = [found[place] for place in shown]
        refined = _crf(images(), given, factor, settings, [cams[place] for place in shown])
        for place, scores in zip(shown, refined, strict=True):
            found[place] = scores
    return [_marked(scores, cam) for scores, cam in zip(found, cams, strict=True)]


def _marked(scores: Tensor, cam: StoredCam) -> Tensor:
    """Scores (1 + n, h, w), certain where people say what a pixel is."""
    return fixed_at_marks(scores, marked_channels(cam, (scores.shape[1], scores.shape[2]), scores.device))


def _stacked(cams: Sequence[StoredCam], read_images: Sequence[ReadImage], device: torch.device) -> Callable[[], Tensor]:
    """Reads the images that show a class, when it is called first: (B, H, W, 3) uint8.

    Raises DataError if an image is not of its maps' size.
    """

    @cache
    def images() -> Tensor:
        found = []
        for cam, read in zip(cams, read_images, strict=True):
            if cam.class_ids:
                image = read()
                if image.shape[:2] != cam.size:
                    height, width = image.shape[:2]
                    raise DataError(
                        f"image {cam.name} has {width} x {height} pixels, its maps are of {cam.size[1]} x "
                        f"{cam.size[0]}: it was replaced meanwhile; start the same command again"
                    )
                found.append(torch.from_numpy(np.array(image)))
        return torch.stack(found).to(device)

    return images


def _fitting(compute: Callable[[RefineSettings], Result], cam: StoredCam, settings: RefineSettings) -> Result:
    """The result of `compute`, at a quarter of the pixels as often as memory does not suffice."""
    while True:
        try:
            return compute(settings)
        except (RuntimeError, MemoryError) as error:
            fewer = at_fewer_pixels(cam, settings)
            if not is_memory_error(error) or fewer.max_pixels < FEWEST_PIXELS or not settings.refines:
                raise
        forget_lattices()
        logger.warning("image %s: too little memory; it is refined at %d pixels", cam.name, fewer.max_pixels)
        settings = fewer


def at_fewer_pixels(cam: StoredCam, settings: RefineSettings) -> RefineSettings:
    """Settings with which the image is refined at a quarter of the pixels."""
    pixels = min(settings.max_pixels, cam.size[0] * cam.size[1])
    return settings.model_copy(update={"max_pixels": pixels // 4})


def reduction(size: tuple[int, int], settings: RefineSettings) -> float:
    """Factor (0..1] for both sides of an image in refinement: below 1 if it exceeds `refine.max_pixels`."""
    return min(1.0, math.sqrt(settings.max_pixels / (size[0] * size[1])))


def crf_of(pixels: UInt8, probabilities: Tensor, settings: RefineSettings) -> Tensor:
    """The CRF of `settings` for one image (H, W, 3) and probabilities (K, H, W), which stay on their device."""
    images = torch.from_numpy(np.array(pixels))[None].to(probabilities.device)
    size = probabilities.shape[1], probabilities.shape[2]
    return _crf(images, [probabilities], reduction(size, settings), settings)[0]


def _crf(
    images: Tensor,
    probabilities: Sequence[Tensor],
    factor: float,
    settings: RefineSettings,
    cams: Sequence[StoredCam] = (),
) -> list[Tensor]:
    """Dense CRF: images (B, H, W, 3), B tensors (K, H, W). Large images are reduced for it by `factor`, and so are the
    distances in its kernels. Pixels that people have marked are certain (marks of `cams`; none named: no marks)."""
    kernels: dict[str, Any] = {key: value for key, value in settings if key.startswith(("gaussian_", "bilateral_"))}
    kernels |= {key: kernels[key] * factor for key in ("gaussian_sxy", "bilateral_sxy")}
    if factor < 1:
        whole = probabilities[0].shape[1:]
        size = [max(1, round(side * factor)) for side in whole]
        small = F.interpolate(images.movedim(-1, 1).float(), size, mode="area").round().to(torch.uint8)
        images = small.movedim(1, -1).contiguous()
        probabilities = [F.interpolate(one[None], size, mode="area")[0] for one in probabilities]
    if cams:
        probabilities = [_marked(one, cam) for one, cam in zip(probabilities, cams, strict=True)]
    if settings.crf_backend == "torch":
        found = dense_crf_batch(images, probabilities, settings.crf_iterations, **kernels)
    else:
        found = [
            dense_crf(image, one, settings.crf_iterations, **kernels, backend=settings.crf_backend)
            for image, one in zip(images, probabilities, strict=True)
        ]
    if factor < 1:
        found = [F.interpolate(one[None], whole, mode="bilinear", align_corners=False)[0] for one in found]
    return found


def _to(cam: StoredCam, device: torch.device) -> StoredCam:
    """The maps on a device."""
    background, prototype, features = (
        maps if maps is None else maps.to(device) for maps in (cam.background, cam.prototype, cam.features)
    )
    return replace(cam, cam=cam.cam.to(device), background=background, prototype=prototype, features=features)


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
