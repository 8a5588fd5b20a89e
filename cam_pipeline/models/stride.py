"""Where a CNN's feature cells lie: lower its stride without touching dilation, and find the cells' displacement."""

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def reduce_stride(backbone: nn.Module, stride: int, size: int = 128) -> None:
    """Set to 1 the stride of every layer that takes the feature map below 1/`stride` of the input (in place).

    A trial input finds the layers: those that shrink their input although it is already at 1/`stride`. Kernels and
    weights stay as they are. Raises ValueError when the result has another stride, or none (a model of unusual layers).
    """
    shrinking: list[nn.Module] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and isinstance(inputs[0], Tensor) and output.dim() == inputs[0].dim() == 4:
            before, after = inputs[0].shape[-2], output.shape[-2]
            if after < before and before <= size // stride and module not in shrinking:
                shrinking.append(module)

    layers = [module for module in backbone.modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch) for module in layers]
    training = backbone.training
    backbone.eval()
    try:
        backbone.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]  # every timm model has it
        for handle in handles:
            handle.remove()
        names = {module: name for name, module in backbone.named_modules()}
        for module in shrinking:
            _undo(backbone, names[module], module)
        out: Any = backbone.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
    except RuntimeError as error:
        raise ValueError(f"can not be brought to stride {stride}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(training)
    if out.dim() != 4 or out.shape[-2] * stride != size:
        raise ValueError(
            f"can not be brought to stride {stride}: {size} pixels give features of shape {tuple(out.shape)}"
        )


@torch.no_grad()
def cell_offset(backbone: nn.Module, size: int = 256) -> float:
    """How far the centres of the feature cells lie right of and below where an even division puts them, in pixels.

    Cell i of stride s should be centred at s * i + (s - 1) / 2. A convolution of stride 2 and odd kernel centres it
    elsewhere: padded on both sides half a pixel before, padded as TensorFlow does half a pixel after, and each further
    one doubles that: a ResNet of stride 32 sees everything 15.5 pixels too far left and up. Every layer that shrinks
    its input in a trial pass is asked for its windows; parallel branches count with their mean.
    """
    shrinking: dict[int, list[float]] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and isinstance(inputs[0], Tensor) and output.dim() == inputs[0].dim() == 4:
            before, after = inputs[0].shape[-2], output.shape[-2]
            if after < before and before % after == 0:
                found.append((module, inputs[0].shape[1], before, before // after))

    found: list[tuple[nn.Module, int, int, int]] = []
    layers = [module for module in backbone.modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch) for module in layers]
    training = backbone.training
    backbone.eval()
    try:
        backbone.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]  # every timm model has it
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(training)
    for module, channels, before, stride in found:
        pixels = size / before
        shrinking.setdefault(before, []).append(pixels * (_window_centre(module, channels, stride) - (stride - 1) / 2))
    return sum(sum(shifts) / len(shifts) for shifts in shrinking.values())


def _window_centre(layer: nn.Module, channels: int, stride: int) -> float:
    """Centre of the input rows that output row 0 of a layer would see if its window were not cut at the edge.

    In image r of a batch row r is not a number, and what sees it becomes so, whatever the layer computes.
    """
    rows, middle = 8 * stride, 4
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
