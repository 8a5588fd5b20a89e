"""Positions of a CNN's feature cells: lower its stride without dilation, and find the offset of its cells."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cam_pipeline.models.evaluating import evaluating


class Shrinking(NamedTuple):
    """A layer that reduces its input from `before` to `after` rows in a trial pass; `channels` of its input."""

    layer: nn.Module
    channels: int
    before: int
    after: int


@torch.no_grad()
def reduce_stride(backbone: nn.Module, stride: int, size: int = 128) -> None:
    """Set the stride of every layer that takes the feature map below 1/`stride` of the input to 1, in place.

    A trial pass over an image of `size` x `size` pixels finds these layers. Kernels and weights stay as they are.
    Raises ValueError if the result has another stride, or none (a model with unusual layers).
    """
    try:
        names = {module: name for name, module in backbone.named_modules()}
        found = [one.layer for one in _shrinking(backbone, size) if one.before <= size // stride]
        for layer in dict.fromkeys(found):
            _undo(backbone, names[layer], layer)
        out = _features(backbone, size)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"cannot be brought to stride {stride}: {error}") from error
    if out.dim() == 3:
        raise ValueError(f"cannot be brought to stride {stride}: that of a ViT is the size of its patches")
    if out.dim() != 4 or out.shape[-2] * stride != size:
        raise ValueError(
            f"cannot be brought to stride {stride}: {size} pixels give features of shape {tuple(out.shape)}"
        )


@torch.no_grad()
def cell_offset(backbone: nn.Module, stride: int) -> float:
    """Distance in pixels by which the centres of feature cells lie right of and below an even division of the image.

    With stride s, cell i should be centred at s * i + (s - 1) / 2. A convolution of stride 2 with an odd kernel centres
    it half a pixel before that if padded on both sides, half a pixel after if padded as TensorFlow does. Each further
    such layer doubles the distance: the cells of a ResNet of stride 32 lie 15.5 pixels too far left and up. A trial
    pass finds the layers that shrink their input and the windows they see; parallel branches count with their mean.
    """
    cells = 8
    size = cells * stride
    shifts: dict[int, list[float]] = {}
    for layer, channels, before, after in _shrinking(backbone, size):
        if after >= cells and before % after == 0:
            step = before // after
            shift = _window_centre(layer, channels, step) - (step - 1) / 2
            shifts.setdefault(before, []).append(size / before * shift)
    return sum(sum(branches) / len(branches) for branches in shifts.values())


def _features(backbone: nn.Module, size: int) -> Tensor:
    """Features of a black image of size x size pixels, in evaluation mode."""
    with evaluating(backbone):
        out: Tensor = backbone.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]  # all have it
    return out


def _shrinking(backbone: nn.Module, size: int) -> list[Shrinking]:
    """The layers that shrink their input, in the order of a trial pass.

    Without layers inside a module that keeps its input's shape: those are side branches (pooled keys, squeeze and
    excitation).
    """
    found: list[tuple[str, Shrinking]] = []
    keeping: list[str] = []
    names = {module: name for name, module in backbone.named_modules()}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)):
            return
        if inputs[0].shape == output.shape:
            keeping.append(names[module] + ".")
        elif not list(module.children()) and output.dim() == inputs[0].dim() == 4:
            _, channels, before, _ = inputs[0].shape
            if output.shape[-2] < before:
                found.append((names[module], Shrinking(module, channels, before, output.shape[-2])))

    handles = [module.register_forward_hook(watch) for module in backbone.modules()]
    try:
        _features(backbone, size)
    finally:
        for handle in handles:
            handle.remove()
    return [layer for name, layer in found if not name.startswith(tuple(keeping))]


def _window_centre(layer: nn.Module, channels: int, stride: int) -> float:
    """Centre of the input rows that output row 0 of a layer would see if its window were not cut at the edge.

    Row r of image r in a batch is NaN, and so is every output row that sees it, whatever the layer computes.
    """
    rows = 8 * stride
    middle = 4
    images = torch.zeros(rows, channels, rows, rows)
    images[torch.arange(rows), :, torch.arange(rows)] = torch.nan
    seen = layer(images)[:, :, middle].isnan().flatten(1).any(dim=1).nonzero().flatten()
    return float(seen.min() + seen.max()) / 2 - middle * stride


def _undo(backbone: nn.Module, name: str, module: nn.Module) -> None:
    kernel = getattr(module, "kernel_size", 1)
    side = kernel if isinstance(kernel, int) else kernel[0]
    if isinstance(module, nn.Conv2d):
        module.stride = (1, 1)
        if side % 2 == 0:  # an even kernel without stride needs one more pixel on one side to keep the size
            module.padding = "same"
    else:  # pooling: without stride it would only blur
        parent = backbone.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.Identity())
