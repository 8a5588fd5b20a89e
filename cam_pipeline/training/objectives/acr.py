"""ACR's objective: consistent attention between two views."""

import torch
from torch import Tensor

from cam_pipeline.config import AcrSettings, Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.ops.acr import consistency_losses, patch_permutation, transform_images
from cam_pipeline.training.objectives.base import rise


class AcrObjective:
    """Two views, seen in one pass, whose attention must agree once the transform between them is undone.

    The two classification losses are summed, not averaged, as in the released code: the weights are relative to that.
    Source: ACR (arXiv 2308.04321), section 3.2; per-row weights are `weight * N` times the means over N patches.
    """

    def __init__(self, classifier: Classifier, config: Config) -> None:
        try:
            self.tap = AttentionTap(classifier, config.acr.layers)
        except NoAttention as error:
            raise ConfigError(
                f"objectives.acr compares attention between patches, but {error}; take a ViT as classifier.backbone "
                "(a CNN can be its classifier.trunk)"
            ) from error
        except ValueError as error:
            raise ConfigError(f"acr.layers: {error}") from error
        if getattr(classifier.backbone, "cls_token", None) is None:
            raise ConfigError(
                f"objectives.acr compares what the class token attends to, and '{config.classifier.backbone}' has "
                "none; take a ViT with a class token"
            )
        self.prefix_tokens = classifier.prefix_tokens
        self.settings: AcrSettings = config.acr

    def both_views(self, images: Tensor) -> tuple[Tensor, str]:
        """The square images, behind them their transforms; and which transform it is."""
        kinds = self.settings.transforms
        kind = kinds[int(torch.randint(len(kinds), ()))]
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.cat([images, transform_images(images, kind)]).contiguous(memory_format=layout), kind

    def consistency(self, kind: str, grid: torch.Size, progress: float) -> Tensor:
        """The weighted distances of the attention that the tap saw in both views."""
        rows, columns = grid
        first, second = torch.stack(self.tap.take(), dim=1).chunk(2)
        permutation = patch_permutation(kind, rows, columns)
        activation, affinity = consistency_losses(first, second, permutation, self.prefix_tokens)
        distance = self.settings.activation_weight * activation + self.settings.affinity_weight * affinity
        return rise(progress, self.settings.ramp) * rows * columns * distance
