"""Dense CRF (Krähenbühl and Koltun 2011), with the package pydensecrf2: aligns scores with the image's edges."""

import math
from types import ModuleType
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.errors import LibraryMissing
from cam_pipeline.ops.dtypes import ROUNDING

SMALLEST_PROBABILITY = 1e-5
"""Lower probabilities are raised to this before the logarithm, so that no label is ruled out."""


@overload
def dense_crf(
    image: NDArray[np.uint8] | Tensor,
    probabilities: NDArray[Any],
    iterations: int = ...,
    gaussian_sxy: float = ...,
    gaussian_weight: float = ...,
    bilateral_sxy: float = ...,
    bilateral_srgb: float = ...,
    bilateral_weight: float = ...,
) -> NDArray[np.float32]: ...
@overload
def dense_crf(
    image: NDArray[np.uint8] | Tensor,
    probabilities: Tensor,
    iterations: int = ...,
    gaussian_sxy: float = ...,
    gaussian_weight: float = ...,
    bilateral_sxy: float = ...,
    bilateral_srgb: float = ...,
    bilateral_weight: float = ...,
) -> Tensor: ...
def dense_crf(
    image: NDArray[np.uint8] | Tensor,
    probabilities: NDArray[Any] | Tensor,
    iterations: int = 10,
    gaussian_sxy: float = 3,
    gaussian_weight: float = 3,
    bilateral_sxy: float = 50,
    bilateral_srgb: float = 5,
    bilateral_weight: float = 10,
) -> NDArray[np.float32] | Tensor:
    """Mean-field posterior of a dense CRF: (H, W, 3) uint8, (K, H, W) -> (K, H, W) float32 summing to 1.

    Energy = sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] (w_g exp(-|d_ij|^2 / 2 s_g^2) + w_b exp(-|d_ij|^2 /
    2 s_b^2 - |c_ij|^2 / 2 s_c^2)) with distance d in pixels and colour difference c in 0..255. Both kernels are
    symmetrically normalised, so a weight counts per pixel, whatever the image's size; weight 0 switches a kernel off.
    `probabilities` are floats in 0..1, clipped at 1e-5; their sum need not be 1, as a common factor of a pixel changes
    nothing.

    The result is numpy or a tensor, like `probabilities`, and on the same device (the work is done on the CPU); `image`
    may be either. K = 1 gives ones. Raises ValueError for a wrong shape, dtype or range, and LibraryMissing if the
    module pydensecrf cannot be imported.
    """
    strengths = (iterations, gaussian_weight, bilateral_weight)
    widths = (gaussian_sxy, bilateral_sxy, bilateral_srgb)
    if not (all(0 <= s < math.inf for s in strengths) and all(0 < w < math.inf for w in widths)):
        raise ValueError("iterations and weights must be finite and >= 0, sxy and srgb finite and > 0")
    unary_input = _as_numpy(probabilities)
    pixels = _as_numpy(image)
    _check_image_and_probabilities(pixels, unary_input)
    labels, height, width = unary_input.shape
    if labels == 1:
        return _like(np.ones((1, height, width), dtype=np.float32), probabilities)

    densecrf = _import_densecrf()
    crf = densecrf.DenseCRF2D(width, height, labels)
    energy = -np.log(np.clip(unary_input.astype(np.float32), SMALLEST_PROBABILITY, 1.0))
    crf.setUnaryEnergy(np.ascontiguousarray(energy.reshape(labels, -1)))
    if gaussian_weight > 0:
        crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_weight)
    if bilateral_weight > 0:
        rgb = np.array(pixels, order="C")
        crf.addPairwiseBilateral(sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=rgb, compat=bilateral_weight)
    posterior = np.array(crf.inference(iterations), dtype=np.float32)
    return _like(posterior.reshape(labels, height, width), probabilities)


def _check_image_and_probabilities(image: NDArray[Any], probabilities: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if probabilities.ndim != 3 or probabilities.size == 0 or probabilities.shape[1:] != image.shape[:2]:
        shape = probabilities.shape
        raise ValueError(f"probabilities must be (K, H, W) with the image's {image.shape[:2]}, not {shape}")
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ValueError(f"probabilities must be floats in 0..1, not {probabilities.dtype}")
    smallest, largest = float(probabilities.min()), float(probabilities.max())
    if not (smallest >= -ROUNDING and largest <= 1 + ROUNDING):
        raise ValueError(f"probabilities must lie in 0..1, but span {smallest}..{largest}")


def _import_densecrf() -> ModuleType:
    """Imported late: the package compiles at installation, and all but the CRF works without it."""
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        remedy = "pip install pydensecrf2 (needs a C++ compiler)"
        raise LibraryMissing(f"the CRF needs the module pydensecrf, which cannot be imported: {remedy}") from error
    module: ModuleType = densecrf
    return module


def _as_numpy(array: NDArray[Any] | Tensor) -> NDArray[Any]:
    if not isinstance(array, Tensor):
        return array
    tensor = array.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _like(posterior: NDArray[np.float32], probabilities: NDArray[Any] | Tensor) -> NDArray[np.float32] | Tensor:
    if isinstance(probabilities, Tensor):
        return torch.from_numpy(posterior).to(probabilities.device)
    return posterior
