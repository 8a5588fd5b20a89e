"""What SFC reads beside a classifier's maps: features of several depths, and which pixels are alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cam_pipeline.models.hybrid import TrunkFeatures, trunk_of
from cam_pipeline.ops.sfc import maps_with_background, pixel_correlation, prototype_cam, unit_vectors

SIDE_WIDTHS = (128, 128, 256, 256)
"""Channels of the side features of the (at most) four levels, shallow to deep."""
WIDEST = 2048


class NoLevels(ValueError):
    """The network does not say where its features of several depths are."""


@dataclass(frozen=True)
class Calibration:
    """Settings of the maps: `background_over` and `background_factor` as in `ops.sfc`; steps of pixel correlation."""

    background_over: str = "present"
    background_factor: float = 0.3
    correlation_steps: int = 2


class Level(NamedTuple):
    """A module whose output is features of `width` channels: (B, D, h, w), (B, h, w, D) or tokens."""

    module: nn.Module
    width: int
    channels_last: bool


def feature_levels(backbone: nn.Module) -> list[Level]:
    """Where features of (at most) four depths come out, shallow to deep.

    Of a CNN the last four stages, of a transformer four blocks as far apart as can be, of a hybrid the last three
    stages of its trunk and its last block. Raises NoLevels for a model of which timm does not say.
    """
    trunk = trunk_of(backbone)
    if trunk is not None:
        cnn = trunk.network if isinstance(trunk, TrunkFeatures) else trunk
        return _stages(cnn)[-3:] + _stages(backbone)[-1:]
    stages = _stages(backbone)
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        count = min(len(SIDE_WIDTHS), len(stages))
        return [stages[len(stages) * (level + 1) // count - 1] for level in range(count)]
    return stages[-len(SIDE_WIDTHS) :]


def _stages(network: nn.Module) -> list[Level]:
    """The modules of timm's `feature_info`."""
    described: Any = getattr(network, "feature_info", None)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # by its shape a map can not be told
    try:
        return [Level(network.get_submodule(one["module"]), int(one["num_chs"]), channels_last) for one in described]
    except (AttributeError, KeyError, TypeError) as error:
        raise NoLevels(
            f"timm does not say where the stages of {type(network).__name__} are; take another classifier.backbone"
        ) from error


class LevelTap:
    """Keeps the features of several depths of a classifier's last forward pass.

    with LevelTap(classifier.backbone, classifier.prefix_tokens) as tap:
        features, logits = classifier(images)
    levels = tap.take(features.shape[-2:])   # (B, D_l, h_l, w_l) each, shallow to deep; only the last has a graph
    """

    def __init__(self, backbone: nn.Module, prefix_tokens: int) -> None:
        self.levels, self.prefix_tokens = feature_levels(backbone), prefix_tokens
        self._seen: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        def hook_of(level: int) -> Any:
            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                out: Tensor = output[0] if isinstance(output, tuple | list) else output
                self._seen[level] = out if level == len(self.levels) - 1 else out.detach()

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
        """The levels, tokens laid out on `grid` (h, w); they are forgotten. RuntimeError when nothing was seen."""
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


class CalibrationHead(nn.Module):
    """Side features of every level, and features by which pixels are compared.

    Learned, they are 1 x 1 convolutions without bias: `sides` of the levels to `SIDE_WIDTHS`, `comparison` of the image
    with the deepest level, D wide, to min(2048, D). What is not learned is taken from the levels as they are.
    """

    def __init__(self, level_widths: Sequence[int] = (), sides: bool = False, comparison: bool = False) -> None:
        super().__init__()
        self.sides: nn.ModuleList | None = None
        self.comparison: nn.Conv2d | None = None
        if sides:
            widths = zip(level_widths, SIDE_WIDTHS, strict=False)
            self.sides = nn.ModuleList(nn.Conv2d(width, side, 1, bias=False) for width, side in widths)
        if comparison:
            self.comparison = nn.Conv2d(level_widths[-1] + 3, min(WIDEST, level_widths[-1]), 1, bias=False)

    def side_features(self, levels: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """The levels' unit vectors, brought to `grid` and put one behind another: (B, sum of widths, h, w).

        They have no graph but that of the side layers.
        """
        size = (grid[0], grid[1])
        sides = [nn.Identity()] * len(levels) if self.sides is None else list(self.sides)
        units = []
        for side, level in zip(sides, levels, strict=True):
            unit = unit_vectors(side(sampled_pixels(level.detach(), size)))
            units.append(F.interpolate(unit, size, mode="bilinear", align_corners=False))
        return torch.cat(units, dim=1)

    def compared_features(self, images: Tensor, deepest: Tensor) -> Tensor:
        """What pixel correlation compares: of normalised images (B, 3, H, W) and the deepest level (B, D, h, w)."""
        if self.comparison is None:
            return deepest
        small = F.interpolate(images, deepest.shape[-2:], mode="bilinear", align_corners=False)
        compared: Tensor = self.comparison(torch.cat([deepest, small.to(deepest.dtype)], dim=1))
        return compared

    def classifier_maps(
        self,
        raw: Tensor,
        images: Tensor,
        deepest: Tensor,
        present: Tensor,
        settings: Calibration,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Raw class maps (B, C, h, w) as maps with background (B, K, h, w), spread over pixels that look alike.

        `images` (B, 3, H, W) normalised, `deepest` level (B, D, h, w), `present` (B, C), `valid` (B, 1, h, w) or None.
        """
        maps = maps_with_background(raw, present, settings.background_over, valid)
        if settings.correlation_steps == 0:
            return maps
        return pixel_correlation(maps, self.compared_features(images, deepest), settings.correlation_steps)

    def prototype_maps(
        self,
        maps: Tensor,
        levels: Sequence[Tensor],
        present: Tensor,
        settings: Calibration,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Prototype maps (B, K, h, w) in 0..1 from the seeds of `maps` (B, K, h, w)."""
        shown = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)[:, :, None, None].expand_as(maps)
        mask = shown if valid is None else shown * valid
        side_features = self.side_features(levels, maps.shape[-2:])
        return prototype_cam(maps, side_features, mask, settings.background_factor)


def sampled_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of (B, D, H, W) that bilinear resampling to `size`, a whole even part of (H, W), looks at.

    Of four, six, ... rows that become one it takes the mean of the middle two; resampling what is returned gives the
    same. Maps of other sizes are returned as they are.
    """
    factors = [length // side for length, side in zip(maps.shape[-2:], size, strict=True)]
    whole = all(length == side * factor for length, side, factor in zip(maps.shape[-2:], size, factors, strict=True))
    if not whole or any(factor % 2 or factor <= 2 for factor in factors):
        return maps
    (rows, columns), (tall, wide) = size, factors
    blocks = maps.unflatten(-1, (columns, wide)).unflatten(-3, (rows, tall))
    middle: Tensor = blocks[..., tall // 2 - 1 : tall // 2 + 1, :, wide // 2 - 1 : wide // 2 + 1]
    return middle.flatten(-2).flatten(-3, -2)
