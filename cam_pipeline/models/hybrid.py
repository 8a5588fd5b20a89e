"""Hybrid vision transformers: the tokens are the cells of the feature map of a CNN, the trunk."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.backbone import UnknownArgument, check_arguments, create_for_any_size, create_timm, trial
from cam_pipeline.models.stride import reduce_stride
from cam_pipeline.models.weights import load_backbone


@dataclass(frozen=True)
class Trunk:
    """Settings of a trunk: `name` of a timm CNN, its `arguments`, and `weights`: "pretrained", "none" or a file."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "pretrained"


class TrunkFeatures(nn.Module):
    """A headless timm CNN: images (B, 3, H, W) -> feature map (B, D, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.width = int(network.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network.forward_features(images)  # type: ignore[operator]
        return channels_first(out, self.width)


def create_trunk(trunk: Trunk, stride: int) -> tuple[nn.Module, int]:
    """The CNN with its weights, brought to `stride` (0: its own), and the stride it has.

    Raises ConfigError and WeightsError like `build_classifier`.
    """
    check_arguments("classifier.trunk_args", trunk.arguments)
    network = create_timm(trunk.name, trunk.weights, {"num_classes": 0, **trunk.arguments})
    if trunk.weights not in ("pretrained", "none"):
        load_backbone(network, Path(trunk.weights))
    own_stride = _stride_of_trunk(network, trunk.name)
    if stride:
        try:
            reduce_stride(network, stride)
        except ValueError as error:
            raise ConfigError(
                f"classifier.stride: trunk '{trunk.name}' {error}; its own is {own_stride} (write 0)"
            ) from error
    return network, stride or own_stride


def hybrid_arguments(trunk: nn.Module) -> dict[str, Any]:
    """Arguments with which a timm ViT takes each cell of the trunk's features as a token, whatever its name says."""
    from timm.layers.hybrid_embed import HybridEmbed  # late, see models/backbone.py

    return {"embed_layer": partial(HybridEmbed, backbone=TrunkFeatures(trunk)), "patch_size": 1}


def _stride_of_trunk(network: nn.Module, name: str) -> int:
    """Input pixels per cell, from a trial input. Raises ConfigError for a network that is no CNN."""
    side = 256
    try:
        out = trial(network, side, side)
    except ValueError as error:
        raise ConfigError(f"classifier.trunk: '{name}' {error}") from error
    if out.dim() != 4:
        raise ConfigError(f"classifier.trunk: '{name}' gives no feature map; a trunk is a CNN")
    return side // int(channels_first(out, int(network.num_features)).shape[2])  # type: ignore[arg-type]


def trunk_of(backbone: nn.Module) -> nn.Module | None:
    """The CNN inside a hybrid vision transformer, ours or one of timm's; None for any other network."""
    from timm.layers.hybrid_embed import HybridEmbed  # late, see models/backbone.py

    patches = getattr(backbone, "patch_embed", None)
    return patches.backbone if isinstance(patches, HybridEmbed) else None


def channels_first(features: Tensor, channels: int) -> Tensor:
    """Features (B, D, h, w) with D = `channels`; some models return them as (B, h, w, D)."""
    return features if features.shape[1] == channels else features.permute(0, 3, 1, 2)


def create_hybrid(name: str, weights: str, arguments: dict[str, Any], trunk: nn.Module, stride: int) -> nn.Module:
    """Create a timm ViT over a trunk of this stride."""
    own = copy.deepcopy(trunk.state_dict())
    try:
        network = create_for_any_size(name, weights, hybrid_arguments(trunk) | arguments)
    except UnknownArgument:
        raise ConfigError(
            f"classifier.backbone: '{name}' does not take the features of a trunk, or classifier.backbone_args; "
            "take a model of timm's vision_transformer.py"
        ) from None
    trunk.load_state_dict(own)  # timm initialises all layers of a new ViT, the trunk's included
    patches: Any = network.patch_embed
    patches.feature_ratio = (stride, stride)  # timm's own is rounded if `img_size` is no multiple of the stride
    return network
