"""A hybrid vision transformer: the feature map of a CNN, its trunk, gives the tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.stride import reduce_stride
from cam_pipeline.models.weights import create_timm, load_backbone


@dataclass(frozen=True)
class Trunk:
    """Which CNN: a timm model by `name`, its `arguments` and `weights` ("pretrained", "none" or a file).

    `lr_factor` is its learning rate as a multiple of the backbone's; 0 freezes it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "pretrained"
    lr_factor: float = 1.0


class TrunkFeatures(nn.Module):
    """A headless timm CNN: images (B, 3, H, W) -> feature map (B, D, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.width = int(network.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network.forward_features(images)  # type: ignore[operator]
        return channels_first(out, self.width)


def trunk_arguments(trunk: Trunk, stride: int) -> tuple[nn.Module, dict[str, Any]]:
    """The CNN with its weights, brought to `stride` unless that is 0, and what makes a timm ViT take its features.

    Raises ConfigError and WeightsError as `build_classifier`.
    """
    network = create_timm(trunk.name, trunk.weights, {"num_classes": 0, **trunk.arguments})
    if hasattr(network, "blocks") and hasattr(network, "num_prefix_tokens"):
        raise ConfigError(f"classifier.trunk: '{trunk.name}' is a transformer; a trunk is a CNN")
    if trunk.weights not in ("pretrained", "none"):
        load_backbone(network, Path(trunk.weights))
    if stride:
        try:
            reduce_stride(network, stride)
        except ValueError as error:
            raise ConfigError(f"classifier.stride: trunk '{trunk.name}' {error}; 0 takes its own stride") from error
    # A token is one cell of the feature map, whatever patch the model's name says.
    return network, {"embed_layer": partial(HybridEmbed, backbone=TrunkFeatures(network)), "patch_size": 1}


def trunk_of(backbone: nn.Module) -> nn.Module | None:
    """The CNN inside a hybrid vision transformer, ours or one of timm's; None for any other network."""
    patches = getattr(backbone, "patch_embed", None)
    return patches.backbone if isinstance(patches, HybridEmbed) else None


def channels_first(features: Tensor, channels: int) -> Tensor:
    """(B, D, h, w) of features that some models give as (B, h, w, D)."""
    return features if features.shape[1] == channels else features.permute(0, 3, 1, 2)
