"""The terms of TSCD's single stage: when they are there, what they learn from, and what they leave alone."""

from unittest.mock import patch

import pytest
import torch

from cam_pipeline.assembly.single_stage import new_single_stage
from cam_pipeline.config import Config
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import tscd as module
from cam_pipeline.training.objectives.classification import ClassificationObjective, classification_loss
from cam_pipeline.training.objectives.tscd import TscdObjective

CLASSIFIER = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"depth": 2, "embed_dim": 24, "num_heads": 3},
    "weights": "none",
    "trunk": "resnet10t",
    "trunk_args": {"channels": [8, 16, 24, 32], "stem_width": 8},
    "trunk_weights": "none",
    "stride": 16,
}
CNN = {**CLASSIFIER, "backbone": "resnet10t", "backbone_args": CLASSIFIER["trunk_args"], "trunk": ""}
SEGMENTATION = ["classification", "tscd.background", "tscd.known", "tscd.objects"]
LABELS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def built(classifier=CLASSIFIER, **settings):
    torch.manual_seed(0)
    config = Config.model_validate({"classifier": classifier, "tscd": {"decoder_width": 8, "points": 6, **settings}})
    network = new_single_stage(config, 2)
    return network, Loss(network, [ClassificationObjective(), TscdObjective(network, config)])


def batch(box=(0, 0, 64, 64), labels=LABELS):
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    boxes = torch.tensor([[0, 0, 64, 64], box])
    return {"image": images, "index": torch.tensor([0, 1]), "box": boxes, "labels": labels}


def names(terms):
    return sorted(name for name in terms if name != "loss")


def test_before_the_start_there_is_classification_alone():
    _, loss = built(start=0.5)
    with patch.object(TscdObjective, "_maps") as maps:
        assert names(loss(batch(), 0.4)) == ["classification"]
        assert not maps.called
    assert names(loss(batch(), 0.5)) == sorted([*SEGMENTATION, "tscd.affinity", "tscd.scd"])


@pytest.mark.parametrize(
    ("classifier", "settings", "more"),
    [
        (CLASSIFIER, {"scd": "off"}, ["tscd.affinity"]),
        (CLASSIFIER, {"scd": "released", "affinity": False}, ["tscd.scd"]),
        (CLASSIFIER, {"scd_weight": 0, "affinity_weight": 0}, []),
        (CLASSIFIER, {"energy_weight": 0.01, "scd": "off", "affinity": False}, ["tscd.energy"]),
        (CNN, {}, ["tscd.scd"]),
    ],
)
def test_what_is_off_or_not_there_is_not_computed(classifier, settings, more):
    network, loss = built(classifier, **settings)
    off = {"affinity": "affinity_loss", "scd": "correspondence_loss", "energy": "dense_energy_loss"}
    absent = [name for key, name in off.items() if f"tscd.{key}" not in more]
    calls = [patch.object(module, name) for name in absent]
    mocks = [call.start() for call in calls]
    try:
        found = loss(batch(), 1.0)
    finally:
        for call in calls:
            call.stop()
    assert names(found) == sorted([*SEGMENTATION, *more])
    assert not any(mock.called for mock in mocks)
    found["loss"].backward()
    gradients = [one.grad for one in network.decoder.parameters()]
    assert all(one is not None and one.isfinite().all() for one in gradients)


@pytest.mark.parametrize("scd", ["default", "released"])
def test_class_maps_are_targets_and_learn_from_classification_alone(scd):
    network, loss = built(scd=scd)
    terms = loss(batch(), 1.0)
    alone = ClassificationObjective()
    with patch.object(alone, "weight", 0.0):
        loss.objectives[0].weight = 0.0
        network.zero_grad()
        loss(batch(), 1.0)["loss"].backward()
    head = network.classifier.head.weight.grad
    assert head is None or not head.any()
    assert all(value.isfinite() for value in terms.values())


def test_maps_are_read_in_evaluation_mode_and_statistics_stay():
    network, loss = built(scd="off", map_scales=(0.5, 1.5), map_flip=True)
    network.train()
    modes = []
    hook = network.classifier.normalize.register_forward_hook(lambda *_: modes.append(network.classifier.training))
    loss(batch(), 1.0)
    hook.remove()
    assert modes == [True, False, False, False, False] and network.training and network.decoder.training
    _, plain = built(scd="off", map_scales=())
    before = {name: value.clone() for name, value in plain.network.state_dict().items() if "running" in name}
    with torch.no_grad():
        plain(batch(), 1.0)
    once = {name: value.clone() for name, value in plain.network.state_dict().items() if "running" in name}
    assert any(not torch.equal(once[name], before[name]) for name in once)
    network, loss = built(scd="off", map_scales=(0.5, 1.5), map_flip=True)
    with torch.no_grad():
        loss(batch(), 1.0)
    for name, value in once.items():
        torch.testing.assert_close(network.state_dict()[name], value)


def test_what_pads_a_crop_teaches_nothing():
    _, loss = built(scd="off", affinity=False)
    loss.network.eval()
    labels = []
    with patch.object(module, "balanced_halves", wraps=module.balanced_halves) as learned:
        loss(batch(box=(9, 0, 64, 40)), 1.0)
        labels = learned.call_args.args[1]
    assert labels.shape == (2, 32, 32)
    assert (labels[1, :5] == 255).all() and (labels[1, :, 20:] == 255).all()
    assert (labels[1, 5:, :20] != 255).any()
    shown = set(labels[1].unique().tolist()) | set(labels[0].unique().tolist())
    assert shown <= {0, 1, 2, 255} and 2 not in labels[0].unique().tolist()


def test_an_image_without_classes_is_background():
    _, loss = built(scd="off", affinity=False)
    with patch.object(module, "balanced_halves", wraps=module.balanced_halves) as learned:
        found = loss(batch(labels=torch.tensor([[0.0, 0.0], [0.0, 0.0]])), 1.0)
        assert (learned.call_args.args[1] == 0).all()
    assert float(found["tscd.objects"]) == 0 and found["loss"].isfinite()


def test_classification_is_the_soft_margin_of_the_specification():
    loss = classification_loss(torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    assert loss.item() == pytest.approx(0.377779, abs=1e-6)
