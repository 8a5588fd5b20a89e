"""Features of several depths of a backbone: which modules return them, and how to read them."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cam_pipeline.models.hybrid import TrunkFeatures, trunk_of

SIDE_WIDTHS = (128, 128, 256, 256)
"""Channels of the side features of the (at most) four levels, shallow to deep."""


class NoLevels(ValueError):
    """timm does not name the stages of this network."""


class Level(NamedTuple):
    """A module whose output is features of `width` channels: (B, D, h, w), (B, h, w, D) or tokens.

    `stride`: input pixels per cell as timm says, before any change; 0: it says nothing.
    """

    module: nn.Module
    width: int
    channels_last: bool
    stride: int = 0


def feature_levels(backbone: nn.Module) -> list[Level]:
    """The modules that return features of (at most) four depths, shallow to deep.

    CNN: the last four stages. Transformer: four evenly spaced blocks, up to the last. Hybrid: the last three stages of
    its trunk and its last block. Raises NoLevels for a model whose stages timm does not name.
    """
    trunk = trunk_of(backbone)
    if trunk is not None:
        cnn = trunk.network if isinstance(trunk, TrunkFeatures) else trunk
        return stages(cnn)[-3:] + stages(backbone)[-1:]
    found = stages(backbone)
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        count = min(len(SIDE_WIDTHS), len(found))
        return [found[len(found) * (level + 1) // count - 1] for level in range(count)]
    return found[-len(SIDE_WIDTHS) :]


def stages(network: nn.Module) -> list[Level]:
    """The modules of timm's `feature_info`. Raises NoLevels for a model without it."""
    described: Any = getattr(network, "feature_info", None)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # a map's shape alone does not show it
    try:
        return [
            Level(
                network.get_submodule(one["module"]), int(one["num_chs"]), channels_last, int(one.get("reduction") or 0)
            )
            for one in described
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise NoLevels(
            f"timm does not say where the stages of {type(network).__name__} are; take another classifier.backbone"
        ) from error


class LevelTap:
    """Keeps features of several depths of a classifier's last forward pass.

    with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        features, logits = classifier(images)
    levels = tap.take(features.shape[-2:])   # (B, D_l, h_l, w_l) each, shallow to deep; only the last has a graph

    `levels`: those to keep, if not `feature_levels`; `graph`: all of them have a graph.
    """

    def __init__(
        self, backbone: nn.Module, prefix_tokens: int, levels: Sequence[Level] | None = None, graph: bool = False
    ) -> None:
        self.levels = feature_levels(backbone) if levels is None else list(levels)
        self.prefix_tokens = prefix_tokens
        self._graph = graph
        self._seen: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        def hook_of(level: int) -> Any:
            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                out: Tensor = output[0] if isinstance(output, tuple | list) else output
                self._seen[level] = out if self._graph or level == len(self.levels) - 1 else out.detach()

            return keep

        self._handles = [
            level.module.register_forward_hook(hook_of(number)) for number, level in enumerate(self.levels)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self, grid: Sequence[int]) -> list[Tensor]:
        """The features (B, D, h, w) of each level, tokens laid out on `grid` (h, w); the tap then forgets them.

        Raises RuntimeError if there was no forward pass since the last call.
        """
        if len(self._seen) != len(self.levels):
            raise RuntimeError("the network has not run since the levels were last taken")
        maps = []
        for number, level in enumerate(self.levels):
            out = self._seen.pop(number)
            if out.dim() == 3:  # tokens (B, p + N, D)
                out = out[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, tuple(grid))
            elif level.channels_last:
                out = out.permute(0, 3, 1, 2)
            maps.append(out)
        return maps


def sampled_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of maps (B, D, H, W) that bilinear resampling to `size` (h, w) reads, if H / h and W / w are even.

    If 4, 6, ... rows become one, only the middle two count. Resampling the result gives the same maps. For other sizes,
    and for a factor of 2, the maps are returned as they are.
    """
    factors = [length // side for length, side in zip(maps.shape[-2:], size, strict=True)]
    whole = all(length == side * factor for length, side, factor in zip(maps.shape[-2:], size, factors, strict=True))
    if not whole or any(factor % 2 or factor <= 2 for factor in factors):
        return maps
    (rows, columns), (tall, wide) = size, factors
    blocks = maps.unflatten(-1, (columns, wide)).unflatten(-3, (rows, tall))
    middle: Tensor = blocks[..., tall // 2 - 1 : tall // 2 + 1, :, wide // 2 - 1 : wide // 2 + 1]
    return middle.flatten(-2).flatten(-3, -2)
