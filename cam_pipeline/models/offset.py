"""Measure where a network's feature cells lie in the image.

The gradient of a feature cell shows which pixels it sees, and the centre of that where the cell lies. The gradient of a
network with its own weights is noisy, and attention spreads it over the whole image. So it is taken with even weights:
every layer passes on the mean of what it sees, and attention stays at its place. Then two neighbouring cells see the
same, one cell apart, but for what all cells see alike. That cancels in the difference of their gradients, from whose
moments the centre follows exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cam_pipeline.models.evaluating import evaluating

LONG_SIDE = 512
"""Pixels of the trial image along the axis that is measured, about what a ResNet's cell sees, and at least 16 cells."""

SHORT_SIDE = 64
"""Pixels of the trial image along the other axis, and at least 2 cells."""

EXACT = 0.05
"""Pixels by which the image's border may falsify what is a multiple of half a pixel."""


class NoPosition(ValueError):
    """The gradient does not show where the cells of a network lie."""


_measured: dict[tuple[str, int], tuple[float, float]] = {}


def cell_offset(backbone: nn.Module, stride: int) -> tuple[float, float]:
    """Distances (down, right) in pixels of the centres of feature cells from an even division of the image.

    With stride s, cell i should be centred at s * i + (s - 1) / 2. A convolution of stride 2 with an odd kernel centres
    it half a pixel before that if padded on both sides, half a pixel after if padded as TensorFlow does. Each further
    such layer doubles the distance: the cells of a ResNet of stride 32 lie 15.5 pixels too far left and up. Parallel
    branches count with their mean. Tokens of a transformer lie where its patches do.

    Depends on the layers alone, and changes neither weights nor the state of random generators. Takes a pass forward
    and one back over a small image for each axis, once for every architecture. Raises NoPosition.
    """
    key = (repr(backbone), stride)
    if key not in _measured:
        _measured[key] = _measure(backbone, stride)
    return _measured[key]


@torch.inference_mode(False)
def _measure(backbone: nn.Module, stride: int) -> tuple[float, float]:
    """As `cell_offset`, which keeps the result."""
    seeing: Any = backbone.forward_features
    with evaluating(backbone):
        long, short = max(16, LONG_SIDE // stride // 2 * 2), max(2, SHORT_SIDE // stride)
        with torch.no_grad():
            tokens = seeing(torch.zeros(1, 3, short * stride, short * stride)).dim() == 3
        see = backbone.patch_embed if tokens else seeing
        with torch.enable_grad(), _even_weights(backbone):
            return _centre(see, stride, (long, short)), _centre(see, stride, (short, long))


def _centre(see: Any, stride: int, grid: tuple[int, int]) -> float:
    """Offset in pixels along the longer axis of `grid`; `see` gives the features of an image."""
    axis = grid.index(max(grid))
    image = torch.ones(1, 3, grid[0] * stride, grid[1] * stride, requires_grad=True)
    rows = _on_grid(see(image), grid).sum(dim=1 - axis)
    second = len(rows) // 2
    (gradient,) = torch.autograd.grad(rows[second] - rows[second - 1], image)
    change = gradient[0].double().sum(dim=(0, 2 - axis))
    at = torch.arange(len(change)) - (len(change) - 1) / 2  # pixels from the middle, between the two rows
    # With m the mass, a and b the centres of the rows: the first moment is m (b - a), the second m (b^2 - a^2).
    first, second_moment = float((at * change).sum()), float((at.square() * change).sum())
    if not math.isfinite(first) or first == 0:
        raise NoPosition("the gradient of its features does not reach the image")
    found = second_moment / first / 2
    half = round(2 * found) / 2  # what it is exactly, unless layers lie side by side
    return half if abs(found - half) < EXACT else round(found, 3)


def _on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """The sum (h, w) over the channels of features (1, h, w, D), (1, D, h, w) or (1, h * w, D)."""
    if features.dim() == 3:
        return features[0].sum(dim=-1).view(grid)
    return features[0].sum(dim=-1 if features.shape[1:3] == grid else 0)


class _ToOnes(torch.autograd.Function):
    """Divides positive values by their mean, and takes the result for ones; around 1, activations pass gradients on."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.mean = float(values.mean())
        return torch.ones_like(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        through: Tensor = gradient / ctx.mean
        return through


def _ones(values: Tensor) -> Tensor:
    ones: Tensor = _ToOnes.apply(values)
    return ones


@contextmanager
def _even_weights(network: nn.Module) -> Iterator[None]:
    """Inside, the layers of `network` compute with even weights. The weights themselves are not touched."""

    def skip(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        same = isinstance(output, Tensor) and isinstance(inputs[0], Tensor) and output.shape == inputs[0].shape
        return _ones(inputs[0]) if same else None

    handles = [module.register_forward_hook(skip) for module in network.modules() if _is_norm(module)]
    try:
        with _EvenWeights():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module) -> bool:
    """True for a layer that normalises, and does nothing else with a place of its own."""
    places = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return "Norm" in type(module).__name__ and not any(isinstance(one, places) for one in module.modules())


class _EvenWeights(TorchFunctionMode):
    """Replaces the functions of `_EVEN`, and multiplication by a parameter, which counts as 1."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _EVEN:
            return _EVEN[func](*args, **(kwargs or {}))
        if func in _PRODUCTS and all(isinstance(factor, Tensor) for factor in args):
            for scale, values in (args, args[::-1]):
                shape = torch.broadcast_shapes(scale.shape, values.shape)
                if isinstance(scale, nn.Parameter) and shape == values.shape:
                    return values
        return func(*args, **(kwargs or {}))


def _convolution(
    own: Callable[..., Tensor],
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The mean over what a window sees, by the function `own` of a single channel for each group."""
    axes = weight.dim() - 2
    spans = [step * (side - 1) for step, side in zip(_each(dilation, axes), weight.shape[2:], strict=True)]
    if padding == "same":
        around = [(span // 2, span - span // 2) for span in spans]
    else:
        around = [(side, side) for side in _each(0 if padding == "valid" else padding, axes)]
    means = images.unflatten(1, (groups, -1)).mean(dim=2)
    padded = _padded(means, [side for pair in reversed(around) for side in pair])
    even = weight.new_full((groups, 1, *weight.shape[2:]), 1 / weight[0, 0].numel())
    seen = own(padded, even, None, stride, 0, dilation, groups).unsqueeze(2)
    return _ones(seen.expand(-1, -1, len(weight) // groups, *seen.shape[3:]).flatten(1, 2))


def _transposed_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *more: Any, **named: Any
) -> Tensor:
    windows = weight[0, 0].numel() / math.prod(_each(stride, 2))
    groups = named.get("groups", more[2] if len(more) > 2 else 1)
    even = torch.full_like(weight, groups / len(weight) / windows).detach()
    return _ones(F.conv_transpose2d(images, even, None, stride, *more, **named))


def _mean_pooling(
    images: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *_: Any, **__: Any
) -> Tensor:
    high, wide = _each(padding, 2)
    return _ones(F.avg_pool2d(_padded(images, [wide, wide, high, high]), kernel_size, stride, 0, ceil_mode))


def _max_pooling(
    images: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The mean: of equal values the largest is any."""
    return _mean_pooling(images, kernel_size, stride, padding, ceil_mode)


def _context(images: Tensor, size: Any, *_: Any, **__: Any) -> Tensor:
    """Without gradient: what is pooled to a fixed size, as for a gate, has no place."""
    return _ones(F.adaptive_avg_pool2d(images, size)).detach()


def _padded(images: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padded by repeating the border: zeros would take weight from a layer that sees far, beside one that does not."""
    if mode == "constant" and images.dim() > 2 and len(pad) == 2 * images.dim() - 4 and min(pad) >= 0:
        return F.pad(images, list(pad), mode="replicate") if any(pad) else images
    return F.pad(images, list(pad), mode, value)


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _ones(values.mean(dim=-1, keepdim=True).expand(*values.shape[:-1], len(weight)))


def _softmax(values: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
    """Attention of equally many to one another stays where it is; any other is even."""
    if values.shape[-2:-1] == values.shape[-1:] and dim % values.dim() == values.dim() - 1:
        return torch.eye(values.shape[-1], dtype=values.dtype).expand_as(values)
    return torch.full_like(values, 1 / values.shape[dim]).detach()


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    own = value if query.shape[-2] == value.shape[-2] else value.mean(dim=-2, keepdim=True)
    return own.expand(*query.shape[:-1], value.shape[-1])


def _each(sides: Any, axes: int) -> list[int]:
    """One number for each axis."""
    given = [sides] if isinstance(sides, int) else list(sides)
    return given * axes if len(given) == 1 else given


_EVEN: dict[Any, Callable[..., Tensor]] = {
    **{own: partial(_convolution, own) for own in (F.conv1d, F.conv2d, F.conv3d)},
    F.conv_transpose2d: _transposed_convolution,
    F.linear: _linear,
    F.pad: _padded,
    F.avg_pool2d: _mean_pooling,
    F.adaptive_avg_pool2d: _context,
    F.adaptive_max_pool2d: _context,
    F.max_pool2d: _max_pooling,
    torch.max_pool2d: _max_pooling,
    F.scaled_dot_product_attention: _attention,
    torch.softmax: _softmax,
    F.softmax: _softmax,
    Tensor.softmax: _softmax,
}
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__}
