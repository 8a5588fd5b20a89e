"""Per-pixel scores and labels of one image from its class activation maps."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.grid import to_tensor
from cam_pipeline.data.images import UInt8
from cam_pipeline.ops.cam import cam_scores, resize_cam, to_probabilities, with_background
from cam_pipeline.ops.crf import dense_crf
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.refine import local_refine
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.scores import StoredScores

ReadImage = Callable[[], UInt8]

THRESHOLDS = torch.arange(100) / 100
"""Background scores of a sweep: 0, 0.01 ... 0.99."""
HIGHEST = 0.99
"""Highest background score in use, as at 1 no class could win; the lowest is 1 - HIGHEST."""


def class_scores(cam: StoredCam, settings: RefineSettings) -> tuple[Tensor, Tensor]:
    """Scores of the present classes before refinement, (n, H, W) in 0..1, and (H, W) to add to the background score.

    Calibrated maps: the mean of classifier and prototype maps, weighted by `prototype_share`, and `background_map`
    times the same mean of their backgrounds. Other maps: the maps, and zero. Every map is divided by its maximum first
    (see `normalize`), except merged maps: they are means of such maps. Source: SFC (arXiv 2401.11719), specification
    section 6: with a background of .2 a class wins if fg > .5 bg + .2.
    """
    if cam.normalized:
        return resize_cam(cam.cam, cam.size), torch.zeros(cam.size)
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
        return torch.zeros(cam.size, dtype=torch.long), torch.zeros(cam.size)
    scores, beside = class_scores(cam, settings)
    score, channel = scores.max(dim=0)
    return torch.tensor(cam.class_ids)[channel], (score - beside).clamp_min(0)


def smoothed_scores(cam: StoredCam, read_image: ReadImage, settings: RefineSettings) -> tuple[Tensor, Tensor]:
    """`class_scores` after local refinement, if `kernel` asks for one.

    The kernels are linear and, renormalised, keep constants, so the constant background score need not be refined.
    `read_image` as in `refined_scores`.
    """
    scores, beside = class_scores(cam, settings)
    if settings.kernel == "none" or not cam.class_ids:
        return scores, beside
    guide = to_tensor(read_image())[None].float() / 255
    if tuple(guide.shape[-2:]) != cam.size:
        raise ValueError(f"the image is {tuple(guide.shape[-2:])}, its maps are of {cam.size}")
    factor = min(settings.kernel_guide, reduction(cam.size, settings))
    size = [max(1, round(side * factor)) for side in cam.size]
    both = torch.cat([scores, beside[None]])[None]
    refined = local_refine(
        F.interpolate(guide, size, mode="area"),
        F.interpolate(both, size, mode="area"),
        settings.kernel,
        settings.kernel_iterations,
        sigma_floor=settings.kernel_sigma_floor,
        renormalize=True,
    )
    whole = F.interpolate(refined, cam.size, mode="bilinear", align_corners=False)[0].clamp(0, 1)
    return whole[:-1], whole[-1]


def refined_scores(cam: StoredCam, read_image: ReadImage, settings: RefineSettings) -> NDArray[np.float32]:
    """Local refinement, background score, then a dense CRF over the present classes: scores (1 + n, H, W), sum 1.

    `read_image` gives the image (H, W, 3) and is called once, and only if it is needed. Raises ValueError if the image
    is not of `cam.size`, or if the background score is still to be chosen.
    """
    read_image = cache(read_image)
    return _scores_at(settings.background_score, smoothed_scores(cam, read_image, settings), cam, read_image, settings)


def refined(cam: StoredCam, read_image: ReadImage, settings: RefineSettings) -> StoredScores:
    """Refined scores and other label maps: before refinement and, with `band`, at two more background scores.

    Arguments and errors as in `refined_scores`.
    """
    read_image = cache(read_image)
    background = settings.background_score
    smoothed = smoothed_scores(cam, read_image, settings)
    best, score = best_class(cam, settings)
    labels = {"unrefined": torch.where(score > background, best, 0).to(torch.uint8).numpy()}
    if settings.band:
        ends = {"high": min(background + settings.band, HIGHEST), "low": max(background - settings.band, 1 - HIGHEST)}
        for name, end in ends.items():
            labels[name] = complete_labels(_scores_at(end, smoothed, cam, read_image, settings), cam.class_ids)
    scores = _scores_at(background, smoothed, cam, read_image, settings)
    return StoredScores(cam.name, scores, cam.class_ids, labels)


def _scores_at(
    background: float,
    smoothed: tuple[Tensor, Tensor],
    cam: StoredCam,
    read_image: ReadImage,
    settings: RefineSettings,
) -> NDArray[np.float32]:
    """Scores (1 + n, H, W) at a background score, from the result of `smoothed_scores`."""
    classes, beside = smoothed
    scores = with_background(classes, background)
    scores[0] += beside
    probabilities: NDArray[np.float32] = to_probabilities(scores).numpy()
    if not settings.crf or not cam.class_ids:
        return probabilities
    return _crf(read_image(), probabilities, reduction(cam.size, settings), settings)


def reduction(size: tuple[int, int], settings: RefineSettings) -> float:
    """Factor (0..1] for both sides of an image in refinement: below 1 if it exceeds `refine.max_pixels`."""
    return min(1.0, math.sqrt(settings.max_pixels / (size[0] * size[1])))


def _crf(
    image: UInt8, probabilities: NDArray[np.float32], factor: float, settings: RefineSettings
) -> NDArray[np.float32]:
    """Dense CRF. A large image is reduced for it by `factor`, and so are the distances in its kernels."""
    kernels: dict[str, Any] = {key: value for key, value in settings if key.startswith(("gaussian_", "bilateral_"))}
    if factor == 1:
        return dense_crf(image, probabilities, iterations=settings.crf_iterations, **kernels)
    size = [max(1, round(side * factor)) for side in probabilities.shape[1:]]
    small_image = F.interpolate(to_tensor(image)[None].float(), size, mode="area")[0].round().to(torch.uint8)
    small = F.interpolate(torch.from_numpy(probabilities)[None], size, mode="area")[0]
    kernels |= {key: kernels[key] * factor for key in ("gaussian_sxy", "bilateral_sxy")}
    refined = dense_crf(small_image.permute(1, 2, 0), small, iterations=settings.crf_iterations, **kernels)
    whole: NDArray[np.float32] = F.interpolate(
        refined[None], probabilities.shape[1:], mode="bilinear", align_corners=False
    )[0].numpy()
    return whole
