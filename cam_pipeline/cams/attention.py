"""Spread a view's class maps by the network's own attention, in the same forward pass (ADR 6)."""

from collections.abc import Sequence

from torch import Tensor

from cam_pipeline.cams.classes import ClassIds
from cam_pipeline.cams.reading import AttentionPropagation, CamReading
from cam_pipeline.cams.sources import MapsOf
from cam_pipeline.models.attention import Affinity, attention_hooked
from cam_pipeline.models.classifier import Classifier, ClassifierOutput
from cam_pipeline.ops.acr import propagate_attention


def spread_by_attention(
    propagation: AttentionPropagation,
    maps_of: MapsOf,
    classifier: Classifier,
    images: Tensor,
    reading: CamReading,
    class_ids: Sequence[ClassIds],
) -> tuple[Tensor, ClassifierOutput]:
    """Maps (B, C, h, w) >= 0 of the source `maps_of` after every patch gathered those of the patches it attends to.

    The other arguments are handed to the source. Raises NoAttention, and ValueError for a block that is not there.
    Source: ACR (arXiv 2308.04321), section 3.3.
    """
    affinity = Affinity(classifier.prefix_tokens)
    with attention_hooked(classifier, propagation.blocks, lambda block, attention: affinity.see(attention)):
        maps, output = maps_of(classifier, images, reading, class_ids)
    evidence = maps.flatten(2).relu()  # a patch gathers evidence for a class, not against it
    spread = propagate_attention(evidence, affinity.mean, propagation.steps, propagation.normalize)
    return spread.view_as(maps), output
