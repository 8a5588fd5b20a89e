"""ACR's objective: consistent attention between two views."""

import torch
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.ops.acr import consistency_losses, patch_permutation, transform_images
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise
from cam_pipeline.training.objectives.classification import classification_loss


class AcrObjective(Objective):
    """Two views, seen in one pass. Their attention must agree once the transform between them is undone.

    The classification losses of the two views are summed, not averaged, as in the released code; the weights are
    relative to that sum. Source: ACR (arXiv 2308.04321), section 3.2. Weights are per row: `weight * N` times the means
    over N patches.
    """

    def __init__(self, classifier: Classifier, config: Config, labels: Tensor) -> None:
        """`labels` are not used. Raises ConfigError if the classifier has no attention that could be compared."""
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
        self.taps = (self.tap,)
        self.prefix_tokens = classifier.prefix_tokens
        self.settings = config.acr
        self.transform = ""

    def added_views(self, images: Tensor) -> Tensor:
        """The square images, transformed; the transform is drawn anew in every step."""
        self.transform = self.settings.transforms[int(torch.randint(len(self.settings.transforms), ()))]
        return transform_images(images, self.transform)

    def terms(self, seen: ForwardPass) -> list[Terms]:
        features, logits = seen.output
        rows, columns = features.shape[-2:]
        settings = self.settings
        first, second = seen.of_images_and_views(torch.stack(self.tap.take(), dim=1))
        permutation = patch_permutation(self.transform, rows, columns)
        activation, affinity = consistency_losses(first, second, permutation, self.prefix_tokens)
        distances = {
            "acr.activation": settings.activation_weight * activation,
            "acr.affinity": settings.affinity_weight * affinity,
        }
        _, transformed = seen.of_images_and_views(logits)
        return [
            Terms({"acr.classification": classification_loss(transformed, seen.batch["labels"])}),
            Terms(distances, rise(seen.progress, settings.ramp) * rows * columns),
        ]
