"""Precision in which every op computes: float32 and float64 as given, half precision raised to float32."""

import torch
from torch import Tensor

ROUNDING = 1e-4
"""Tolerance by which a score or probability may leave 0..1: softmax outputs and resampled maps are rounded."""


def at_least_float32(tensor: Tensor, name: str) -> Tensor:
    """Return `tensor` itself if it is float32 or float64, else a float32 copy of the half-precision tensor.

    Raises ValueError, naming the argument `name`, for integer, boolean and complex tensors.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating point tensor, not {tensor.dtype}")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
