"""The interface of objectives, by a method that no other file knows, and by the objectives without a method."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from cam_pipeline.config import Config, ObjectiveSettings
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.pipeline import Inputs, Output, load_stages
from cam_pipeline.stages.train_cls import train_cls
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import OBJECTIVES, classifier_objectives
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms, rise
from cam_pipeline.training.objectives.classification import classification_loss
from cam_pipeline.training.objectives.segmentation import SegmentationObjective


class ToyObjective(Objective):
    """The logits of an image upside down should be near a moving average of those of the images."""

    def __init__(self, classifier: Classifier, config: Config, labels: Tensor) -> None:
        classifier.toy_average = nn.Buffer(torch.zeros(labels.shape[1]))  # in the network, so that checkpoints hold it
        self.classifier, self.latest = classifier, torch.zeros(labels.shape[1])
        self.steps = 0

    def added_views(self, images: Tensor) -> Tensor:
        return images.flip(-2)

    def more_views(self, steps, start):
        """Every step also shows the first image of the step."""
        for step, views in enumerate(steps):
            if step >= start:
                yield views[:1]

    def terms(self, seen: ForwardPass) -> list[Terms]:
        _, logits = seen.output
        own, turned = seen.of_images_and_views(logits)
        assert len(own) == len(turned) == len(seen.batch["index"]) == 9
        assert seen.batch["index"][0] == seen.batch["index"][-1]
        self.latest = own.detach().mean(dim=0)
        distance = (turned - self.classifier.toy_average).square().mean(dim=1)
        return [Terms({"toy.distance": 0.1 * distance}, rise(seen.progress, 0.5))]

    def after_step(self) -> None:
        self.steps += 1
        self.classifier.toy_average.lerp_(self.latest, 0.5)


class WithToy(ObjectiveSettings):
    toy: bool = True


def config_of(root):
    return Config.model_validate(
        {
            "data": {"root": root},
            "classifier": {
                "backbone": "resnet10t",
                "backbone_args": {"channels": [8, 16, 24, 32], "stem_width": 8},
                "weights": "none",
                "stride": 16,
            },
            "train_cls": {"epochs": 2, "batch_size": 8, "crop": 48, "checkpoint_seconds": 0.0},
            "run": {"workers": 1, "device": "cpu"},
        }
    )


VALIDATION = ("mAP", "mAP_low", "mAP_high", "F1", "images")


def trained(config, folder):
    inputs = Inputs(Dataset(config.data, FileDigests(folder / "digests.json")), {})
    train_cls(config, inputs, Output(folder / "model.safetensors", folder / "logs", "f"))
    return [json.loads(line) for line in (folder / "logs" / "train_cls.jsonl").read_text().splitlines()]


def test_a_method_needs_one_line_beside_its_own_file(tiny_data, tmp_path, monkeypatch):
    made = []

    def make(*given):
        made.append(ToyObjective(*given))
        return made[-1]

    monkeypatch.setitem(OBJECTIVES, "toy", make)
    config = config_of(tiny_data)
    with_toy = config.model_copy(update={"objectives": WithToy()})
    history = trained(with_toy, tmp_path)
    (toy,) = made
    assert toy.steps == 6 and toy.classifier.toy_average.any()
    assert [list(figures) for figures in history] == [
        ["epoch", "loss", "classification", "toy.distance", *VALIDATION]
    ] * 2
    for figures in history:
        assert figures["toy.distance"] > 0
        assert figures["loss"] == pytest.approx(figures["classification"] + figures["toy.distance"], rel=1e-6)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(checkpoint["network"]["toy_average"], toy.classifier.toy_average)
    assert trained(with_toy, tmp_path) == history, "a training that goes on knows the same history"
    off = config.model_copy(update={"objectives": WithToy(toy=False)})
    assert list(trained(off, tmp_path / "off")[0]) == ["epoch", "loss", "classification", *VALIDATION]


def test_without_methods_the_loss_is_the_soft_margin_loss(vit, square, labels, terms_of):
    classifier = vit()
    terms = terms_of(classifier, square())
    torch.testing.assert_close(terms["loss"], classification_loss(classifier(square()).logits, labels).mean())
    assert torch.equal(terms["loss"], terms["classification"])
    assert classification_loss(torch.zeros(2, 3), labels).tolist() == pytest.approx([math.log(2)] * 2)


def test_the_classification_loss_has_a_value_for_each_image():
    logits, labels = torch.tensor([[4.0, -4.0], [4.0, -4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    sure, wrong = classification_loss(logits, labels).tolist()
    assert sure == pytest.approx(math.log1p(math.exp(-4))) and wrong == pytest.approx(math.log1p(math.exp(4)))


def test_methods_are_made_as_the_config_says():
    classifier = build_classifier("test_resnet", 3)
    config = Config.model_validate({"objectives": {"sfc": True}})
    main, method = classifier_objectives(classifier, config, torch.zeros(0, 3))
    assert (main.weight, type(method).__name__) == (0.5, "SfcObjective")
    (main,) = classifier_objectives(classifier, Config(), torch.zeros(0, 3))
    assert main.weight == 1.0


def test_every_switch_has_a_method():
    assert set(OBJECTIVES) == set(ObjectiveSettings.model_fields)


def test_segmentation_is_the_mean_over_labelled_pixels():
    class Logits(nn.Module):
        def forward(self, images):
            return images[:, :2]

    images = torch.rand(2, 3, 2, 2)
    mask = torch.tensor([[[0, 1], [255, 255]], [[255, 255], [255, 1]]], dtype=torch.uint8)
    batch = {"image": images, "index": torch.arange(2), "mask": mask}
    terms = Loss(Logits(), [SegmentationObjective()])(batch, 0.0)
    likelihoods = images[:, :2].log_softmax(dim=1)
    expected = -(likelihoods[0, 0, 0, 0] + likelihoods[0, 1, 0, 1] + likelihoods[1, 1, 1, 1]) / 3
    torch.testing.assert_close(terms["segmentation"], expected)
    assert torch.equal(terms["loss"], terms["segmentation"])
    (group,) = SegmentationObjective().terms(ForwardPass(batch, images[:, :2], 0.0, (2,), 0))
    assert int(group.items) == 3


def test_the_stage_of_the_classifier_depends_on_every_method():
    assert set(OBJECTIVES) == set(ObjectiveSettings.model_fields) <= set(load_stages()["train_cls"].params)


@pytest.mark.parametrize(("progress", "ramp", "share"), [(0.0, 0.0, 1), (0.0, 0.5, 0), (0.25, 0.5, 0.5), (0.7, 0.5, 1)])
def test_a_ramp_rises_evenly(progress, ramp, share):
    assert rise(progress, ramp) == share
