"""Lower the stride of a CNN without dilation."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cam_pipeline.models.evaluating import evaluating


class Shrinking(NamedTuple):
    """A layer that reduces the number of rows of its input in a trial pass; `before`: how many they were."""

    layer: nn.Module
    before: int


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
    except Exception as error:  # of any kind: the code of hundreds of models
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot be brought to stride {stride}: its layers do not fit together then ({reason})") from (
            error
        )
    if out.dim() == 3:
        raise ValueError(f"cannot be brought to stride {stride}: that of a ViT is the size of its patches")
    if out.dim() != 4 or out.shape[-2] * stride != size:
        raise ValueError(
            f"cannot be brought to stride {stride}: {size} pixels give features of shape {tuple(out.shape)}"
        )


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
            before = inputs[0].shape[-2]
            if output.shape[-2] < before:
                found.append((names[module], Shrinking(module, before)))

    handles = [module.register_forward_hook(watch) for module in backbone.modules()]
    try:
        _features(backbone, size)
    finally:
        for handle in handles:
            handle.remove()
    return [layer for name, layer in found if not name.startswith(tuple(keeping))]


def _undo(backbone: nn.Module, name: str, module: nn.Module) -> None:
    kernel = getattr(module, "kernel_size", 1)
    side = kernel if isinstance(kernel, int) else kernel[0]
    if isinstance(module, nn.Conv2d):
        module.stride = (1, 1)
        if side % 2 == 0:  # an even kernel without stride needs one more pixel on one side to keep the size,
            module.padding = "same"  # right and below: cells then lie half a cell further there (models/offset.py)
    else:  # pooling: without stride it would only blur
        parent = backbone.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.Identity())
