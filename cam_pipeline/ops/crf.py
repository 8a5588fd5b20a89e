"""Dense CRF (Krähenbühl and Koltun 2011): aligns scores with the image's edges. In torch, or with pydensecrf."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.errors import LibraryMissing, one_line
from cam_pipeline.ops.dtypes import ROUNDING
from cam_pipeline.ops.mean_field import GREATEST_WEIGHT, mean_field

Array = TypeVar("Array", NDArray[Any], Tensor)
Backend = Literal["auto", "pydensecrf", "torch"]

SMALLEST_PROBABILITY = 1e-5
"""Lower probabilities are raised to this before the logarithm, so that no label is ruled out."""


def dense_crf(
    image: NDArray[np.uint8] | Tensor,
    probabilities: Array,
    iterations: int = 10,
    gaussian_sxy: float = 3,
    gaussian_weight: float = 3,
    bilateral_sxy: float = 50,
    bilateral_srgb: float = 5,
    bilateral_weight: float = 10,
    backend: Backend = "auto",
) -> Array:
    """Mean-field posterior of a dense CRF: (H, W, 3) uint8, (K, H, W) -> (K, H, W) float32 summing to 1.

    Energy = sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] (w_g exp(-|d_ij|^2 / 2 s_g^2) + w_b exp(-|d_ij|^2 /
    2 s_b^2 - |c_ij|^2 / 2 s_c^2)) with distance d in pixels and colour difference c in 0..255. Both kernels are
    symmetrically normalised, so a weight counts per pixel, whatever the image's size; weight 0 switches a kernel off.
    `probabilities` are floats in 0..1, clipped at 1e-5; their sum need not be 1, as a common factor of a pixel changes
    nothing.

    `backend`: `torch` computes on the device of `probabilities`, `pydensecrf` (a package that is compiled when it is
    installed) on the CPU. Both give the same labels at 99.99 % of the pixels or more, and probabilities within 1e-3.
    `auto` is `torch` on a GPU; on the CPU it is the faster of those installed, measured once in a process.

    The result is numpy or a tensor, like `probabilities`, and on the same device; `image` may be either. K = 1 gives
    ones. Raises ValueError for a wrong shape, dtype, range or backend, and LibraryMissing for `pydensecrf` if the
    module cannot be imported.
    """
    strengths = (iterations, gaussian_weight, bilateral_weight)
    widths = (gaussian_sxy, bilateral_sxy, bilateral_srgb)
    if not (all(0 <= s < math.inf for s in strengths) and all(0 < w < math.inf for w in widths)):
        raise ValueError("iterations and weights must be finite and >= 0, sxy and srgb finite and > 0")
    if backend not in ("auto", "pydensecrf", "torch"):
        raise ValueError(f"backend must be auto, pydensecrf or torch, not {backend!r}")
    given, pixels = _as_tensor(probabilities), _as_tensor(image)
    _check_image_and_probabilities(pixels, given)
    if backend == "auto":
        backend = "torch" if given.is_cuda else faster_backend(torch.get_num_threads())
    kernels = (gaussian_sxy, gaussian_weight, bilateral_sxy, bilateral_srgb, bilateral_weight)
    if len(given) == 1:
        posterior = torch.ones_like(given, dtype=torch.float32)
    elif backend == "torch":
        (posterior,) = dense_crf_batch(pixels[None].to(given.device), [given], iterations, *kernels)
    else:
        posterior = _by_pydensecrf(pixels, given, iterations, *kernels)
    return posterior.numpy() if isinstance(probabilities, np.ndarray) else posterior


def dense_crf_batch(
    images: Tensor,
    probabilities: Sequence[Tensor],
    iterations: int = 10,
    gaussian_sxy: float = 3,
    gaussian_weight: float = 3,
    bilateral_sxy: float = 50,
    bilateral_srgb: float = 5,
    bilateral_weight: float = 10,
) -> list[Tensor]:
    """`dense_crf` in torch for a batch: images (B, H, W, 3) uint8 of one size, B tensors (K, H, W), K as each has it.

    All tensors must be on one device, and sound: only `dense_crf` checks what it is given.
    """
    most = max(map(len, probabilities))
    logs = images.new_full((len(images), most, *images.shape[1:3]), -math.inf, dtype=torch.float32)
    for log, one in zip(logs, probabilities, strict=True):
        log[: len(one)] = one.float().clamp(SMALLEST_PROBABILITY, 1).log()
    gaussian, bilateral = (gaussian_weight, gaussian_sxy), (bilateral_weight, bilateral_sxy, bilateral_srgb)
    found = mean_field(images, logs, iterations, gaussian, bilateral)
    return [one[: len(given)] for one, given in zip(found, probabilities, strict=True)]


def is_pydensecrf_installed() -> bool:
    """Whether the module pydensecrf can be imported."""
    try:
        import_densecrf()
    except LibraryMissing:
        return False
    return True


@cache
def faster_backend(threads: int) -> Literal["pydensecrf", "torch"]:
    """The faster backend on this machine's CPU with so many threads of torch; measured if both are there."""
    return faster_of(seconds_per_image(threads)) if is_pydensecrf_installed() else "torch"


def faster_of(seconds: Mapping[str, float]) -> Literal["pydensecrf", "torch"]:
    """The backend that `seconds_per_image` found faster; pydensecrf, the reference, if both took as long."""
    return "pydensecrf" if seconds["pydensecrf"] <= seconds["torch"] else "torch"


def seconds_per_image(threads: int) -> dict[str, float]:
    """Seconds that each backend takes on the CPU for a generated image of 240 x 320 with three labels."""
    draw = partial(torch.rand, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    smooth = torch.nn.functional.interpolate(draw(2, 3, 8, 12), (240, 320), mode="bilinear")
    image = (255 * smooth[0].movedim(0, -1) + 4 * draw(240, 320, 3) - 2).clamp(0, 255).to(torch.uint8)
    probabilities = (4 * smooth[1]).softmax(dim=0)
    seconds = dict.fromkeys(("pydensecrf", "torch"), math.inf)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):  # the first call loads libraries and builds what is kept; other programs disturb some
            for name in seconds:
                started = time.perf_counter()
                dense_crf(image, probabilities, backend=cast(Backend, name))
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return seconds


def _by_pydensecrf(
    image: Tensor,
    probabilities: Tensor,
    iterations: int,
    gaussian_sxy: float,
    gaussian_weight: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_weight: float,
) -> Tensor:
    densecrf = import_densecrf()
    labels, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    energy = -probabilities.float().cpu().clamp(SMALLEST_PROBABILITY, 1).log()
    crf.setUnaryEnergy(energy.reshape(labels, -1).contiguous().numpy())
    if gaussian_weight > 0:
        crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=min(gaussian_weight, GREATEST_WEIGHT))
    if bilateral_weight > 0:
        rgb, compat = image.cpu().contiguous().numpy(), min(bilateral_weight, GREATEST_WEIGHT)
        crf.addPairwiseBilateral(sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=rgb, compat=compat)
    posterior = np.array(crf.inference(iterations), dtype=np.float32)
    return torch.from_numpy(posterior.reshape(labels, height, width)).to(probabilities.device)


def _check_image_and_probabilities(image: Tensor, probabilities: Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {tuple(image.shape)} {image.dtype}")
    if probabilities.ndim != 3 or probabilities.numel() == 0 or probabilities.shape[1:] != image.shape[:2]:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must be (K, H, W) with the image's {tuple(image.shape[:2])}, not {shape}")
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities must be floats in 0..1, not {probabilities.dtype}")
    smallest, largest = float(probabilities.min()), float(probabilities.max())
    if not (smallest >= -ROUNDING and largest <= 1 + ROUNDING):
        raise ValueError(f"probabilities must lie in 0..1, but span {smallest}..{largest}")


def import_densecrf() -> ModuleType:
    """The module of pydensecrf, which is optional. Raises LibraryMissing if it cannot be imported."""
    try:
        from pydensecrf import densecrf
    except Exception as error:  # one that was compiled for another numpy raises ValueError
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(str(error))[:200]})"
        remedy = "pip install pydensecrf2 (needs a C++ compiler), or use the CRF's backend torch"
        raise LibraryMissing(f"the module pydensecrf cannot be imported{why}: {remedy}") from error
    module: ModuleType = densecrf
    return module


def _as_tensor(array: NDArray[Any] | Tensor) -> Tensor:
    """The tensor itself, or a copy of the array: torch takes neither read-only arrays nor negative strides."""
    return array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
