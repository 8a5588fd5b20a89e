"""Sources of class activation maps: one view of the images in, raw maps out.

A new source is a function here, its line in `SOURCES` and its name in `cam.source` (config/cams.py). Views,
propagation, calibration and border work with every source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cam_pipeline.cams.classes import ClassIds, class_ranks
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.models.attention import attention_hooked, attention_modules, block_indices
from cam_pipeline.models.classifier import Classifier, ClassifierOutput
from cam_pipeline.ops.acr import class_token_map
from cam_pipeline.ops.cam import classifier_cam

MapsOf = Callable[[Classifier, Tensor, CamReading, Sequence[ClassIds]], tuple[Tensor, ClassifierOutput]]
"""Raw maps (B, C, h, w), of either sign, and the classifier's output for images (B, 3, H, W) of one view.

The classifier is in evaluation mode. The classes of the images are given to a source that needs them, else none.
"""


@dataclass(frozen=True)
class Source:
    """A source of maps and what it needs.

    `check` raises ValueError if a classifier has no such maps. `needs_classes`: maps are made only for the classes that
    an image shows, so unknown ones are predicted before. `any_magnitude`: maps may be as small as gradients are, so
    they are divided by their maxima before a calibration, which takes maps below 1e-6 for empty.
    """

    maps_of: MapsOf
    check: Callable[[Classifier, CamReading], None] = lambda classifier, reading: None
    needs_classes: bool = False
    any_magnitude: bool = False


def classifier_weights(
    classifier: Classifier, images: Tensor, reading: CamReading, class_ids: Sequence[ClassIds] = ()
) -> tuple[Tensor, ClassifierOutput]:
    """CAM: the features of every cell, weighted and summed by each class's row of the classifier."""
    output = classifier(images)
    return classifier_cam(output.features, classifier.head.weight), output


def class_token_gradient(
    classifier: Classifier, images: Tensor, reading: CamReading, class_ids: Sequence[ClassIds]
) -> tuple[Tensor, ClassifierOutput]:
    """Gradients of each class's logit with respect to the class token's attention: (B, C, h, w) >= 0.

    Only the maps of the classes in `class_ids` are made, all others are zero. One backward pass serves the r-th class
    of all images, since no image's logit depends on another image. Raises ValueError if `class_ids` are not those of
    all images. Source: ACR (arXiv 2308.04321), section 3.3.
    """
    if len(class_ids) != len(images):
        raise ValueError(f"maps by gradient need the classes of each of {len(images)} images, not {len(class_ids)}")
    attentions, (features, logits) = _attention_with_graph(classifier, images, reading.start_layer)
    precision = torch.promote_types(features.dtype, torch.float32)
    maps = features.new_zeros((*logits.shape, *features.shape[-2:]), dtype=precision)
    ranks = class_ranks(class_ids, images.device)
    for rank, classes in enumerate(ranks.unbind(dim=1)):
        present = (classes >= 0).nonzero().flatten()
        with torch.enable_grad():
            chosen = logits[present, classes[present]].sum()
        gradients = torch.autograd.grad(chosen, attentions, retain_graph=rank + 1 < ranks.shape[1])
        found = class_token_map(attentions, gradients, reading.map_function, classifier.prefix_tokens)
        maps[present, classes[present]] = found[present].view(-1, *maps.shape[2:])
    return maps, ClassifierOutput(features.detach(), logits.detach())


def _attention_with_graph(
    classifier: Classifier, images: Tensor, start_layer: int
) -> tuple[list[Tensor], ClassifierOutput]:
    """Attention (B, heads, N, N) of the blocks from `start_layer` on, and an output with a graph back to it.

    The graph begins at the attention of the first of these blocks: everything before is computed without.
    """
    count = len(attention_modules(classifier))
    start = start_layer % count
    attentions: list[Tensor] = []

    def hook(block: int, attention: Tensor) -> Tensor:
        if block == start:
            attention = attention.detach().requires_grad_()
            torch.set_grad_enabled(True)  # until the `no_grad` around the forward pass ends
        attentions.append(attention)
        return attention

    with torch.no_grad(), attention_hooked(classifier, range(start, count), hook):
        output = classifier(images)
    return attentions, output


def _check_class_token(classifier: Classifier, reading: CamReading) -> None:
    """Raise ValueError (NoAttention for a CNN) unless logits are read from a class token, and the block is there."""
    block_indices(len(attention_modules(classifier)), (reading.start_layer,))
    if classifier.pooling != "class_token":
        raise ValueError("its logits are not read from the class token, so they have no gradient there")


SOURCES = {
    "classifier_weights": Source(classifier_weights),
    "class_token_gradient": Source(
        class_token_gradient, check=_check_class_token, needs_classes=True, any_magnitude=True
    ),
}
"""Sources by their name in `cam.source`."""
