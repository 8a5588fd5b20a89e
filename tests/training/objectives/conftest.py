"""Small networks and images for the objectives, and the loss that a step makes of them."""

import math

import pytest
import torch
from torch import nn

from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives.classification import ClassificationObjective


@pytest.fixture
def vit():
    """Makes a ViT whose attention is far from uniform; without positions it follows every transform of its patches."""

    def make(positions=True, seed=0):
        torch.manual_seed(seed)
        classifier = build_classifier(
            "deit_tiny_distilled_patch16_224", 3, arguments={"depth": 3, "pos_embed": "learn"}, pooling="class_token"
        )
        nn.init.normal_(classifier.head.weight)
        for block in classifier.backbone.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=0.1)
        nn.init.normal_(classifier.backbone.pos_embed, std=1.0 if positions else 0.0)
        return classifier

    return make


@pytest.fixture
def square():
    """Makes two square images."""
    return lambda side=48: torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


@pytest.fixture
def terms_of(labels):
    """Makes the loss and its terms for two images; they fill their crop unless `boxes` are given."""

    def make(classifier, images, *methods, progress=1.0, boxes=None, labels=labels):
        main = ClassificationObjective(math.prod(method.main_weight for method in methods))
        height, width = images.shape[-2:]
        whole = torch.tensor([[0, 0, height, width]] * len(images))
        batch = {"image": images, "index": torch.arange(len(images)), "labels": labels}
        batch["box"] = whole if boxes is None else boxes
        return Loss(classifier, [main, *methods])(batch, progress)

    return make
