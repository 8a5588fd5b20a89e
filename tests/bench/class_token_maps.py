"""Localisation by class-token gradients: against a plain forward pass, and against a backward pass for each class.

A batch of 16 images of 2 classes on `vit_small_patch16_224` (random weights), affinity over all layers included. The
peer is the released way: image by image, one backward pass through the whole network for each class. The three
alternate, so that all meet the same machine.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cam_pipeline.cams.multi_scale import read_maps
from cam_pipeline.cams.reading import AttentionPropagation, CamReading
from cam_pipeline.models.attention import AttentionTap
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.ops.acr import class_token_map, propagate_attention

IMAGES, CLASSES, ROUNDS = 16, 20, 5
READING = CamReading(source="class_token_gradient", propagation=AttentionPropagation())


def released_way(classifier: Classifier, images: Tensor, class_ids: list[tuple[int, ...]]) -> Tensor:
    """Maps (B, C, h, w) by one graph for each image and one full backward pass for each of its classes."""
    side = images.shape[-1] // classifier.stride
    maps = torch.zeros(len(images), CLASSES, side, side, device=images.device)
    for number, ids in enumerate(class_ids):
        with AttentionTap(classifier, heads=True) as tap:
            logits = classifier(images[number : number + 1]).logits
            attentions = tap.take()
        for attention in attentions:
            attention.retain_grad()
        p = classifier.prefix_tokens
        affinity = torch.stack([attention.detach().mean(dim=1)[:, p:, p:] for attention in attentions]).mean(dim=0)
        for class_id in ids:
            classifier.zero_grad(set_to_none=True)
            for attention in attentions:
                attention.grad = None
            logits[0, class_id - 1].backward(retain_graph=True)
            gradients = [attention.grad for attention in attentions[-2:] if attention.grad is not None]
            found = class_token_map([one.detach() for one in attentions[-2:]], gradients, "grad", p)
            maps[number, class_id - 1] = propagate_attention(found[None], affinity).view(side, side)
    classifier.zero_grad(set_to_none=True)
    return maps


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    classifier = build_classifier("vit_small_patch16_224", CLASSES, pooling="class_token").eval().to(device)
    nn.init.normal_(classifier.head.weight)
    images = torch.rand(IMAGES, 3, 224, 224, device=device)
    class_ids = [(1 + number, 20 - number // 2) for number in range(IMAGES)]

    def forward() -> object:
        with torch.no_grad():
            return classifier(images)

    work: dict[str, Callable[[], object]] = {
        "plain forward pass": forward,
        "localisation": lambda: read_maps(classifier, images, READING, class_ids),
        "a backward pass for each class and image": lambda: released_way(classifier, images, class_ids),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(1 + ROUNDS):  # the first round warms up
        for name, call in work.items():
            took = seconds(call, device)
            if turn:
                times[name].append(took)
    plain, ours, peer = (statistics.median(values) for values in times.values())
    print(f"Class-token gradients, {IMAGES} images of 224 x 224, 2 classes each, vit_small_patch16_224,", end=" ")
    print(f"affinity over all layers, {device}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    for name, values in times.items():
        print(f"  {name:42s} {statistics.median(values):7.3f} s")
    print(f"  localisation / forward pass {ours / plain:20.2f}   (target: at most 1.6)")
    print(f"  backward passes / localisation {peer / ours:17.2f}   (target: at least 4)")
    mine = read_maps(classifier, images, READING, class_ids).maps
    difference = float((mine - released_way(classifier, images, class_ids)).abs().max() / mine.max())
    print(f"  largest difference of the two sides' maps, of their maximum: {difference:.1e}")


if __name__ == "__main__":
    main()
