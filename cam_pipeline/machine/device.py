"""How to compute: device, precision, memory layout, number of processes."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import nn

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import ConfigError, OutOfMemory
from cam_pipeline.machine.distributed import local_rank, local_world_size, world_size

logger = logging.getLogger(__name__)


def pick_device(run: RunSettings) -> torch.device:
    """The device of `run.device`; if several processes share a machine, each gets a GPU of its own.

    Raises ConfigError if CUDA is asked for but not found: there is no silent fall-back.
    """
    device = torch.device(run.device if run.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and world_size() > 1:
        return _gpu_of_this_process(run, device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device = '{run.device}', but torch finds {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def _gpu_of_this_process(run: RunSettings, device: torch.device) -> torch.device:
    """The GPU with the number of the process on its machine. Raises ConfigError if there are too few GPUs."""
    if device.index is not None:
        raise ConfigError(f"run.device = '{run.device}' names one GPU for {world_size()} processes; write cuda")
    if local_world_size() > torch.cuda.device_count():
        raise ConfigError(
            f"{local_world_size()} processes on this machine, but torch finds {torch.cuda.device_count()} CUDA "
            "devices; start one process for each, or use --device cpu"
        )
    return torch.device("cuda", local_rank())


def autocast(run: RunSettings, device: torch.device) -> torch.autocast:
    """bfloat16 autocast if `run.precision` asks for it and the processor has instructions for it.

    Without them torch uses plain loops: a training step that took 2.5 s in float32 took 38 s (a CPU with AVX2). So
    float32, which is more exact, is used instead, and a warning says so once.
    """
    enabled = run.precision == "bfloat16" and _computes_in_bfloat16(device.type)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_fast_bfloat16(device_type: str) -> bool:
    """Whether this machine's processor of that type has instructions for bfloat16."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def no_fast_bfloat16(device_type: str) -> str:
    """The line that says that bfloat16 is not used though the config asks for it."""
    name = "GPU" if device_type == "cuda" else "CPU"
    return f"run.precision = 'bfloat16': this {name} has no fast bfloat16, so float32 is used"


@cache
def _computes_in_bfloat16(device_type: str) -> bool:
    """As `has_fast_bfloat16`; logs a warning, once, if there is none."""
    found = has_fast_bfloat16(device_type)
    if not found:
        logger.warning("%s", no_fast_bfloat16(device_type))
    return found


NO_MEMORY_ON_CPU = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
NO_MEMORY_ON_GPU = ("out of memory", "STATUS_ALLOC_FAILED", "STATUS_INSUFFICIENT_RESOURCES")
"""Words of torch's memory errors. It has a class for its own allocator on the GPU alone: what the driver, cuDNN,
cuBLAS, a graph or Apple's GPU lacks comes as RuntimeError or AcceleratorError, what the CPU lacks as RuntimeError."""


def is_memory_error(error: BaseException) -> bool:
    """True if the GPU or the machine has too little memory."""
    return isinstance(error, MemoryError) or _lacks_gpu_memory(error) or _says(error, NO_MEMORY_ON_CPU)


def _lacks_gpu_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return _says(error, NO_MEMORY_ON_GPU) and not _says(error, NO_MEMORY_ON_CPU)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def memory_errors_named(what: str, key: str, value: object, instead: str = "") -> Iterator[None]:
    """Turn memory errors of the GPU or the machine into OutOfMemory, naming the setting that memory grows with.

    `instead`: what else would help, while that can still be lowered.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        place = "the GPU" if _lacks_gpu_memory(error) else "this machine"
        remedy = f"lower {key} (now {value})" + (f", {instead}" if instead else "")
        if value in (0, 1):  # 0: one for each core
            remedy = f"set {key}=1" if value == 0 else f"{key} is 1 already, so end other programs"
        raise OutOfMemory(f"{what}: {place} has too little memory; {remedy}. Finished work is kept") from error


@contextmanager
def compiled(network: nn.Module, run: RunSettings) -> Iterator[None]:
    """Compile the network's forward pass if `run.compile` asks for it.

    Raises ConfigError if torch cannot: there may be no compiler.
    """
    if not run.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # late: a second of imports

    network.compile()
    try:
        yield
    except TorchDynamoException as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"run.compile: torch cannot compile this network ({reason[:160]}); set run.compile=false"
        ) from (error)


def uncompiled(run: RunSettings) -> AbstractContextManager[object]:
    """Run a compiled network uncompiled, on images of many sizes: it would be compiled again for each size."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager") if run.compile else nullcontext()
    return stance


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a step frees, so that the next step does not wait for cleared pages.

    By default each activation map is mapped and unmapped again: a quarter of a training step's time on the CPU.
    Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: free memory at the top of the heap is not given back
