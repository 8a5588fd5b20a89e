"""The stage with a classifier that can be read: channel 0 is red, 1 green, 2 blue."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cam_pipeline.config import Config
from cam_pipeline.models.classifier import ClassifierOutput
from cam_pipeline.pipeline import Output
from cam_pipeline.stages import extract_cams as module
from cam_pipeline.store.cams import CamStore

SIZES = {"a": (64, 96), "b": (96, 64), "c": (64, 96), "d": (60, 100), "e": (64, 96)}
LABELS = {"a": "eel;cat", "b": "?", "c": "", "d": "dog", "e": "?"}


class Colours(nn.Module):
    stride, offset, prefix_tokens = 32, 0.0, 0

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3))

    def forward(self, images):
        features = nn.functional.avg_pool2d(images, self.stride)
        return ClassifierOutput(features, 8 * (features.mean(dim=(2, 3)) - 0.3))


@pytest.fixture
def config(tmp_path):
    for name, (height, width) in SIZES.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 250, width)  # red grows to the right,
        pixels[..., 1] = np.linspace(0, 100, height)[:, None]  # some green downwards
        pixels[..., 2] = 60 if name in "ac" else 200 if name == "b" else 0
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    lines = [f"{name}.png,{labels}" for name, labels in LABELS.items()]
    (tmp_path / "data.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    return Config.model_validate(
        {
            "data": {"root": tmp_path, "classes": ("cat", "dog", "eel")},
            "cam": {"scales": (1.0,), "batch_size": 2},
            "run": {"workers": 1, "device": "cpu"},
        }
    )


@pytest.fixture
def stored(config, tmp_path, monkeypatch, inputs):
    monkeypatch.setattr(module, "trained_classifier", lambda config, path, classes: Colours().eval())
    output = Output(tmp_path / "partial" / "cams.h5", tmp_path / "logs", "f")
    module.extract_cams(config, inputs(config, train_cls=tmp_path / "classifier"), output)
    with CamStore.open(output.path) as store:
        assert store.names == list(SIZES) and store.classes == ("cat", "dog", "eel")
        return {name: store.read(name) for name in store.names}


def test_channels_are_those_of_the_present_classes(stored):
    assert {name: one.class_ids for name, one in stored.items()} == {
        "a": (1, 3),
        "b": (1, 3),  # predicted: red 0.49 and blue 0.78 exceed 0.3
        "c": (),
        "d": (2,),
        "e": (1,),
    }
    assert {name: tuple(one.cam.shape) for name, one in stored.items()} == {
        "a": (2, 2, 3), "b": (2, 3, 2), "c": (0, 2, 3), "d": (1, 2, 3), "e": (1, 2, 3),
    }  # fmt: skip
    assert {name: one.size for name, one in stored.items()} == SIZES


def test_maps_are_the_classifiers_mean_over_both_views(stored):
    # Image a: red is the mean of each third of the ramp, the same in both rows; blue is constant.
    thirds = torch.tensor([250 / 6, 250 / 2, 250 * 5 / 6]) / 255
    torch.testing.assert_close(stored["a"].cam[0], thirds.expand(2, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(stored["a"].cam[1], torch.full((2, 3), 60 / 255), atol=1e-3, rtol=0)
    # Image d: green grows downwards, whatever the column.
    halves = torch.tensor([[100 / 4], [100 * 3 / 4]]) / 255
    torch.testing.assert_close(stored["d"].cam[0], halves.expand(2, 3), atol=1e-2, rtol=0)


def test_the_threshold_of_presence_is_honoured(config, tmp_path, monkeypatch, inputs):
    monkeypatch.setattr(module, "trained_classifier", lambda config, path, classes: Colours().eval())
    for at_least_one, predicted in ((False, ()), (True, (3,))):
        update = {"presence_threshold": 0.99, "at_least_one": at_least_one}
        strict = config.model_copy(update={"cam": config.cam.model_copy(update=update)})
        output = Output(tmp_path / str(at_least_one) / "cams.h5", tmp_path / "logs", "f")
        module.extract_cams(strict, inputs(strict, train_cls=tmp_path / "classifier"), output)
        with CamStore.open(output.path) as store:
            assert store.read("b").class_ids == predicted
            assert store.read("a").class_ids == (1, 3), "what is known is not predicted"
