"""What is known of the weights that a network starts from."""

import torch

from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.pretrained import starting_weights


def test_what_a_network_starts_from_is_known_by_its_tensors():
    torch.manual_seed(0)
    first = build_classifier("test_resnet", 2, weights="none")
    said = starting_weights(first)
    assert said["names"].startswith("test_resnet") and len(said["sha256"]) == 64
    torch.nn.init.zeros_(first.head.weight)  # new layers do not count
    assert starting_weights(first) == said
    with torch.no_grad():
        next(first.backbone.parameters()).flatten()[0] += 1
    assert starting_weights(first)["sha256"] != said["sha256"]
