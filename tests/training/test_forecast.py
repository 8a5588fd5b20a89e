import logging
import sys

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import ConfigError
from cam_pipeline.training import forecast as module
from cam_pipeline.training.forecast import forecast

CNN = {"backbone": "test_resnet", "stride": 16}
VIT = {"backbone": "test_vit", "pooling": "class_token"}


def config_of(**sections):
    small = {
        "classifier": CNN,
        "segmenter": {"encoder": "test_resnet"},
        "train_cls": {"crop": 64, "batch_size": 4, "epochs": 3},
        "train_seg": {"crop": 64, "batch_size": 4, "epochs": 5},
        "cam": {"scales": [1.0], "batch_size": 2},
        "run": {"workers": 2, "device": "cpu"},
    }
    return Config.model_validate(small | sections)


@pytest.fixture
def table(tmp_path):
    """9 training images, so two steps of four an epoch, and one validation image."""
    samples = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 56 + number, 3), 20 * number, np.uint8)).save(path)
        samples.append(Sample(str(number), path, "train" if number < 9 else "val", (1 + number % 2,)))
    return Table(("cat", "dog"), tuple(samples))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"refine": {"background": "auto", "background_images": 3}},
        {"objectives": {"sfc": True}, "cam": {"scales": [1.0], "calibration": "sfc"}},
        {"train_seg": {"crop": 64, "batch_size": 4, "epochs": 5, "soft_labels": True, "potts": 0.1}},
        {"train_seg": {"crop": 64, "batch_size": 4, "epochs": 5, "clip_losses": True, "confidence_power": 1.0}},
        {"classifier": VIT, "objectives": {"acr": True}, "cam": {"scales": [1.0], "source": "class_token_gradient"}},
    ],
)
def test_every_long_stage_has_a_time(table, sections):
    seconds, device = forecast(config_of(**sections), table)
    assert device == "cpu" and set(seconds) == {"train_cls", "extract_cams", "refine_cams", "train_seg"}
    assert all(0 < value < 600 for value in seconds.values())


def test_times_are_those_of_all_steps(table, monkeypatch):
    """Every call takes two seconds: too long for a whole batch, for all scales, or for a second call."""

    def two_seconds(act, device):
        act()
        return 2.0

    monkeypatch.setattr(module, "_seconds", two_seconds)
    cam = {"scales": [0.5, 2.0], "flip": True}
    seconds, _ = forecast(config_of(cam=cam, refine={"background": "auto", "background_images": 3}), table)
    # 3 epochs of 2 steps of 4 images, two of which were tried; after each the validation image.
    assert seconds["train_cls"] == pytest.approx(3 * 2 * 2 * 2 + 3 * 2, abs=1)
    assert seconds["extract_cams"] == pytest.approx(9 * 2 * (0.25 + 4) * 2)
    assert seconds["refine_cams"] == pytest.approx((9 + 3 * module.BACKGROUNDS) * 2 / 2)
    assert seconds["train_seg"] == pytest.approx(5 * 2 * 2 * 2, abs=1)


def test_views_of_an_image_bank_count(table, monkeypatch):
    def two_seconds(act, device):
        act()
        return 2.0

    monkeypatch.setattr(module, "_seconds", two_seconds)
    config = config_of(objectives={"sfc": True}, sfc={"draws": 2}, cam={"scales": [1.0], "calibration": "sfc"})
    # 6 steps; of the 4 + 2 views of a step 2 + 2 were tried.
    assert forecast(config, table)[0]["train_cls"] == pytest.approx(6 * 2 * 6 / 4 + 3 * 2, abs=1)


def test_what_cannot_be_tried_is_left_out(table, monkeypatch, caplog):
    def too_large(*arguments):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(module, "_of_segmenter", too_large)
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        seconds, _ = forecast(config_of(), table)
    assert "train_seg" not in seconds and "train_cls" in seconds
    assert "no time is told for train_seg: too little memory" in caplog.text

    def impossible(*arguments):
        raise ConfigError("such a network cannot be had")

    monkeypatch.setattr(module, "_of_classifier", impossible)
    assert forecast(config_of(), table)[0] == {}


def test_without_the_crf_that_is_asked_for_another_is_timed(table, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    seconds, _ = forecast(config_of(refine={"crf_backend": "pydensecrf"}), table)
    assert {"train_cls", "extract_cams", "refine_cams"} <= seconds.keys()
    assert "a run would fail here: the module pydensecrf cannot be imported" in caplog.text


def test_without_the_device_there_are_no_times(table, caplog):
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        assert forecast(config_of(run={"device": "cuda:99"}), table) == ({}, "")
    assert "no times are told: run.device = 'cuda:99', but torch finds" in caplog.text


def test_short_calls_are_repeated_and_long_ones_are_not(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    calls = []

    def call(*seconds):
        calls.append(seconds[len(calls)] if len(calls) < len(seconds) else seconds[-1])
        clock[0] += calls[-1]

    assert module._seconds(lambda: call(0.9, 0.1, 0.3, 0.2), module.torch.device("cpu")) == pytest.approx(0.2)
    assert len(calls) == 1 + module.REPEATS
    calls.clear()
    assert module._seconds(lambda: call(5.0, 0.1), module.torch.device("cpu")) == 5.0 and len(calls) == 1
