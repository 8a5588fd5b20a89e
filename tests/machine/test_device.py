import pytest
import torch
from torch import nn

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import ConfigError, OutOfMemory
from cam_pipeline.machine.device import (
    _computes_in_bfloat16,
    autocast,
    compiled,
    memory_errors_named,
    pick_device,
    uncompiled,
)
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.models.placing import image_batch, place

ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", RuntimeError)  # a class of its own since torch 2.8


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


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def test_each_of_several_processes_has_its_own_gpu(gpus, second_of_two):
    own = torch.device("cuda", 1) if gpus else torch.device("cpu")
    assert pick_device(RunSettings(device="auto")) == own
    assert pick_device(RunSettings(device="cpu")) == torch.device("cpu")


def test_one_gpu_is_not_for_two_processes(monkeypatch, second_of_two):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on this machine, but torch finds 1 CUDA devices; start one"):
        pick_device(RunSettings(device="cuda"))
    with pytest.raises(ConfigError, match=r"run\.device = 'cuda:0' names one GPU for 2 processes; write cuda"):
        pick_device(RunSettings(device="cuda:0"))


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    _computes_in_bfloat16.cache_clear()
    yield request.param
    _computes_in_bfloat16.cache_clear()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_settings_as_far_as_the_processor_has_it(precision, has_bfloat16):
    layer, images = nn.Linear(3, 2), torch.rand(4, 3)
    expected = torch.bfloat16 if precision == "bfloat16" and has_bfloat16 else torch.float32
    with autocast(RunSettings(precision=precision), torch.device("cpu")):
        assert layer(images).dtype == expected


def test_a_processor_without_bfloat16_is_told_of_once(has_bfloat16, caplog):
    for precision in ("float32", "bfloat16", "bfloat16"):
        assert not caplog.messages or precision == "bfloat16"
        autocast(RunSettings(precision=precision), torch.device("cpu"))
    assert _computes_in_bfloat16("cuda") == has_bfloat16
    line = "run.precision = 'bfloat16': this {} has no fast bfloat16, so float32 is used"
    assert caplog.messages == ([] if has_bfloat16 else [line.format("CPU"), line.format("GPU")])


def test_without_onednn_there_is_no_bfloat16(has_bfloat16, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not _computes_in_bfloat16("cpu")


def test_networks_and_images_are_laid_out_channels_last():
    network = nn.Conv2d(3, 4, 3)
    place(network, torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 4, 5)
    batch = image_batch(images, torch.device("cpu"))
    assert batch.is_contiguous(memory_format=torch.channels_last) and torch.equal(batch, images)


def test_worker_count(monkeypatch):
    assert worker_count(RunSettings(workers=3)) == 3
    for cores, workers in [(1, 1), (6, 6), (64, 8)]:
        monkeypatch.setattr("cam_pipeline.machine.parallel.usable_cores", lambda cores=cores: cores)
        assert worker_count(RunSettings(workers=0)) == workers
    monkeypatch.setattr("cam_pipeline.machine.parallel.usable_cores", lambda: 12)
    assert [worker_count(RunSettings(workers=0), processes) for processes in (1, 2, 5, 24)] == [8, 6, 2, 1]
    assert worker_count(RunSettings(workers=3), processes=4) == 3


def test_compiling_is_off_unless_asked_for():
    network = nn.Linear(2, 2)
    with compiled(network, RunSettings()), uncompiled(RunSettings()):
        assert network._compiled_call_impl is None


def test_a_network_that_can_not_be_compiled_is_one_line(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    line = r"^run\.compile: torch cannot compile this network \(no compiler was found\); set run\.compile=false$"
    with pytest.raises(ConfigError, match=line), compiled(nn.Linear(2, 2), RunSettings(compile=True)):
        raise TorchDynamoException("\nno compiler was found\nmore\n")


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_and_not_where_sizes_vary():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    images = torch.randn(2, 3, 8, 8)
    run, expected = RunSettings(compile=True), network(images)
    with compiled(network, run):
        torch.testing.assert_close(network(images), expected)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs == 1
        with uncompiled(run):
            for side in range(9, 14):
                network(torch.randn(1, 3, side, side))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("Allocation on device"), "the GPU"),
        (ACCELERATOR_ERROR("CUDA error: out of memory\nCUDA kernel errors might be ...", 2), "the GPU"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the GPU"),
        (RuntimeError("CUDA error: out of memory"), "the GPU"),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), "the GPU"),
        (RuntimeError("XPU out of memory."), "the GPU"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), "the GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the GPU"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
            "this machine",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."), "this machine"),
        (RuntimeError("unable to mmap 1024 bytes from file <a>: Cannot allocate memory (12)"), "this machine"),
        (RuntimeError("std::bad_alloc"), "this machine"),
        (MemoryError(), "this machine"),
    ],
)
def test_memory_errors_name_the_setting(error, place):
    line = f"^train_cls: {place} has too little memory; lower train_cls.batch_size \\(now 16\\). Finished work is kept$"
    with pytest.raises(OutOfMemory, match=line), memory_errors_named("train_cls", "train_cls.batch_size", 16):
        raise error


@pytest.mark.parametrize(
    ("value", "remedy"), [(0, "set run.workers=1"), (1, "run.workers is 1 already, so end other programs")]
)
def test_what_cannot_be_lowered_is_not_to_be(value, remedy):
    line = f"^refine_cams: this machine has too little memory; {remedy}. Finished work is kept$"
    with pytest.raises(OutOfMemory, match=line), memory_errors_named("refine_cams", "run.workers", value):
        raise MemoryError


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), ValueError("out of memory")])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as caught, memory_errors_named("train_cls", "train_cls.batch_size", 16):
        raise error
    assert caught.value is error
