import pytest
import torch
from torch import nn

from cam_pipeline.config import RunSettings
from cam_pipeline.device import autocast, image_batch, pick_device, place, worker_count
from cam_pipeline.errors import ConfigError


@pytest.fixture(params=[0, 2])
def gpus(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    return request.param


def test_auto_takes_what_there_is(gpus):
    assert pick_device(RunSettings(device="auto")).type == ("cuda" if gpus else "cpu")
    assert pick_device(RunSettings(device="cpu")).type == "cpu"


@pytest.mark.parametrize(("device", "needed"), [("cuda", 1), ("cuda:1", 2), ("cuda:2", 3)])
def test_a_gpu_that_is_not_there_is_an_error_not_the_cpu(gpus, device, needed):
    if gpus >= needed:
        assert pick_device(RunSettings(device=device)) == torch.device(device)
        return
    with pytest.raises(ConfigError, match=rf"run\.device = '{device}', but torch finds {gpus} CUDA devices"):
        pick_device(RunSettings(device=device))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_the_settings(precision, dtype):
    layer, images = nn.Linear(3, 2), torch.rand(4, 3)
    with autocast(RunSettings(precision=precision), torch.device("cpu")):
        assert layer(images).dtype == dtype


def test_networks_and_images_are_laid_out_channels_last():
    network = nn.Conv2d(3, 4, 3)
    place(network, torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 4, 5)
    batch = image_batch(images, torch.device("cpu"))
    assert batch.is_contiguous(memory_format=torch.channels_last) and torch.equal(batch, images)


def test_worker_count(monkeypatch):
    assert worker_count(RunSettings(workers=3)) == 3
    for cores, workers in [(1, 1), (6, 6), (64, 8), (None, 1)]:
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert worker_count(RunSettings(workers=0)) == workers
