"""One network that classifies and segments: a classifier, and a decoder that reads its levels (TSCD)."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.levels import LevelTap, NoLevels
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.models.tscd import AffinityHead, MlpDecoder, affinity_blocks, decoder_levels


class SingleStageOutput(NamedTuple):
    """`features` (B, D, h, w) and `logits` (B, C) of the classifier; `segmentation` (B, 1 + C, h', w') on the decoder's
    grid; `affinity` (B, N, N) in 0..1 between the N = h * w cells, None without the head."""

    features: Tensor
    logits: Tensor
    segmentation: Tensor
    affinity: Tensor | None


class SingleStage(PretrainedHalf):
    """A classifier with a decoder that segments from the same features, and a head that reads affinity from attention.

    Images (B, 3, H, W), uint8 or float in 0..1, with sides that are multiples of `classifier.stride`. `width`: channels
    of the decoder. The head is there if `affinity` is asked for and the backbone is a ViT; it serves training alone.
    Raises ConfigError if timm does not name the stages of the backbone.
    """

    def __init__(
        self, classifier: Classifier, num_labels: int, width: int = 256, affinity: bool = True, symmetric: bool = True
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.freeze_batch_norm = classifier.freeze_batch_norm
        try:
            self._levels = decoder_levels(classifier.backbone)
        except NoLevels as error:
            raise ConfigError(f"train-e2e needs features of several depths, but {error}") from error
        self.decoder = MlpDecoder([level.width for level in self._levels], num_labels, width)
        self.affinity: AffinityHead | None = None
        self._blocks: list[int] = []
        if affinity:
            try:
                self._blocks, heads = affinity_blocks(classifier.backbone)
            except NoAttention:
                return
            self.affinity = AffinityHead(heads, symmetric, classifier.prefix_tokens)

    def pretrained_half(self) -> nn.Module:
        return self.classifier.pretrained_half()

    def learning_rate_factors(self, new_layers: float) -> Iterator[tuple[nn.Parameter, float]]:
        yield from self.classifier.learning_rate_factors(new_layers)
        for layers in filter(None, (self.decoder, self.affinity)):
            for parameter in layers.parameters():
                yield parameter, new_layers

    def forward(self, images: Tensor) -> SingleStageOutput:
        return self.see(images, affinity=self.affinity is not None)

    def see(self, images: Tensor, affinity: bool = False) -> SingleStageOutput:
        """As a call; affinity is read only if asked for."""
        classifier = self.classifier
        with ExitStack() as taps:
            levels = taps.enter_context(
                LevelTap(classifier.backbone, classifier.prefix_tokens, self._levels, graph=True)
            )
            attention = None
            if affinity and self.affinity is not None:
                attention = taps.enter_context(AttentionTap(classifier, self._blocks, heads=True))
            features, logits = classifier(images)
        segmentation = self.decoder(levels.take(features.shape[-2:]))
        found = None
        if attention is not None and self.affinity is not None:
            found = self.affinity(attention.take())
        return SingleStageOutput(features, logits, segmentation, found)


class SingleStageSegmenter(Segmenter):
    """A single-stage network as a segmenter: the same layers, the answer at the size of the images."""

    def __init__(self, stage: SingleStage) -> None:
        mean, std = (
            tuple(values.flatten().tolist())
            for values in (stage.classifier.normalize.mean, stage.classifier.normalize.std)
        )
        super().__init__(stage, stage.classifier.backbone, mean, std)
        self.multiple = stage.classifier.stride
        self.freeze_batch_norm = stage.freeze_batch_norm

    def forward(self, images: Tensor) -> Tensor:
        found = self.network.see(images)  # type: ignore[operator]
        return F.interpolate(found.segmentation, images.shape[-2:], mode="bilinear", align_corners=False)
