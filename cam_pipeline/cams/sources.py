"""Sources of class activation maps: one view of an image in, raw maps out. A new source goes here."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cam_pipeline.cams.reading import CamReading, Propagation
from cam_pipeline.models.attention import Affinity, attention_hooked, attention_modules, block_indices
from cam_pipeline.models.classifier import Classifier, ClassifierOutput
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.ops.acr import class_token_map, propagate_attention
from cam_pipeline.ops.cam import classifier_cam


def view_maps(
    classifier: Classifier, images: Tensor, reading: CamReading, ranks: Tensor | None = None
) -> tuple[Tensor, ClassifierOutput]:
    """Raw maps (B, C, h, w) of one view, and what the classifier gave: images (B, 3, H, W) as `Classifier` takes them.

    Propagation by attention is done, what compares features is not. `ranks` as `class_ranks` gives them, for maps by
    gradient. The classifier looks in evaluation mode and is left as it came.
    """
    affinity, propagation = Affinity(classifier.prefix_tokens), reading.attention
    if reading.by_gradient:
        if ranks is None:
            raise ValueError("maps by gradient need the classes to read")
        with evaluating(classifier):
            maps, output = _class_token_maps(classifier, images, reading, ranks, affinity)
    else:
        with evaluating(classifier), _seen_by(affinity, classifier, propagation):
            output = classifier(images)
        maps = classifier_cam(output.features, classifier.head.weight)
    if propagation is not None:
        # A patch gathers evidence for a class, not against it.
        flat = maps.flatten(2).relu()
        maps = propagate_attention(flat, affinity.mean, propagation.steps, propagation.normalize).view_as(maps)
    return maps, output


def _seen_by(
    affinity: Affinity, classifier: Classifier, propagation: Propagation | None
) -> AbstractContextManager[None]:
    """Inside, `affinity` sees the attention of the blocks by which maps are to be propagated."""
    if propagation is None:
        return nullcontext()
    return attention_hooked(classifier, propagation.blocks, lambda block, attention: affinity.see(attention))


def _class_token_maps(
    classifier: Classifier, images: Tensor, reading: CamReading, ranks: Tensor, affinity: Affinity
) -> tuple[Tensor, ClassifierOutput]:
    """Maps of the classes in `ranks`, zero elsewhere, from the gradients of their logits.

    One gradient pass serves a rank of all images, since no image's logit depends on another image. The graph begins
    at the attention of block `start_layer`: what lies before is computed without.
    """
    count = len(attention_modules(classifier))
    start = reading.start_layer % count
    of_affinity = set(block_indices(count, reading.attention.blocks)) if reading.attention else set()
    attentions: list[Tensor] = []

    def hook(block: int, attention: Tensor) -> Tensor | None:
        if block in of_affinity:
            affinity.see(attention)
        if block < start:
            return None
        if block == start:
            attention = attention.detach().requires_grad_()
            torch.set_grad_enabled(True)  # until the `no_grad` around the forward pass ends
        attentions.append(attention)
        return attention

    with torch.no_grad(), attention_hooked(classifier, sorted({*of_affinity, *range(start, count)}), hook):
        features, logits = classifier(images)
    precision = torch.promote_types(features.dtype, torch.float32)
    maps = features.new_zeros((*logits.shape, *features.shape[-2:]), dtype=precision)
    for rank, classes in enumerate(ranks.unbind(dim=1)):
        present = (classes >= 0).nonzero().flatten()
        with torch.enable_grad():
            chosen = logits[present, classes[present]].sum()
        gradients = torch.autograd.grad(chosen, attentions, retain_graph=rank + 1 < ranks.shape[1])
        found = class_token_map(attentions, gradients, reading.map_function, classifier.prefix_tokens)
        maps[present, classes[present]] = found[present].view(-1, *maps.shape[2:])
    return maps, ClassifierOutput(features.detach(), logits.detach())
