"""What `doctor` finds out about this machine, one function for each matter. Nothing heavy is imported at the top.

Each function may raise anything: whoever calls it writes "unknown", for a tool that explains failures must not fail.
"""

import math
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cam_pipeline.config import Config
from cam_pipeline.errors import UserError
from cam_pipeline.machine.cgroup import ROOT
from cam_pipeline.machine.cores import cores
from cam_pipeline.machine.disk import room_at
from cam_pipeline.machine.gpus import Driver, Gpu, gpus, hidden_by, nvidia_driver, torch_build, why_no_gpu
from cam_pipeline.machine.libraries import installed, unmet, why_broken
from cam_pipeline.machine.memory import memory
from cam_pipeline.version import __version__

GB = 2**30
LITTLE_MEMORY = 2 * GB
"""Bytes. Torch and timm take 0.7 GB, the training of the demo 0.9, and its worker processes come on top."""
LITTLE_DISK = 5 * GB
"""Bytes: before compression, the scores and labels of 6,000 photographs of 375 x 500 pixels that show 1.5 classes."""
LITTLE_TEMPORARY = GB
"""Bytes. Large arrays reach worker processes through files there if /dev/shm is small."""
LITTLE_ADDRESSES = 8 * GB
"""Bytes. A torch for CUDA maps 3.3 GB when it is imported, and a GPU and each thread take more."""
FEW_FILES = 128
"""A training with eight worker processes has 80 open: libraries, pipes and batches."""
HUB_SECONDS = 2.0
"""How long to wait for the hub of weights."""
GET_STARTED = "https://pytorch.org/get-started"

LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "timm": "timm",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "numpy": "numpy", "scikit-image": "skimage", "h5py": "h5py", "joblib": "joblib",
}  # fmt: skip
"""Distributions that are shown, and the modules in them. The first four build on each other."""
NEEDS_TORCH = ("torch", "torchvision", "timm", "segmentation-models-pytorch")
EXTRAS = ("pydensecrf2", "dask", "ray")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do, in one line. An error stops a run, a warning does not."""

    state: Literal["warning", "error"]
    line: str


@dataclass(frozen=True)
class Finding:
    """One matter: what was found, in words and in values, and what is wrong with it."""

    found: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    known: bool = True

    @property
    def state(self) -> str:
        """`error`, `warning`, `ok`, or `unknown` if it could not be found out."""
        states = {problem.state for problem in self.problems}
        if states:
            return "error" if "error" in states else "warning"
        return "ok" if self.known else "unknown"


def gigabytes(count: float) -> str:
    """Bytes in GB, as exactly as matters."""
    return f"{count / GB:.1f} GB" if count < 99.95 * GB else f"{count / GB:.0f} GB"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _need_torch() -> None:
    """Raise RuntimeError if torch cannot be imported, which is told once. A second attempt may do harm."""
    if why_broken("torch"):
        raise RuntimeError("torch cannot be imported")


def of_program(config: Config, given: bool) -> Finding:
    """Versions of this program, Python and the system."""
    system, machine, python = platform.system(), platform.machine(), platform.python_version()
    release = platform.mac_ver()[0] or " ".join(platform.libc_ver())
    values = {"cam_pipeline": __version__, "python": python, "system": system, "release": release, "machine": machine}
    return Finding(f"{__version__}, Python {python}, {system} {machine}{f', {release}' if release else ''}", values)


def of_libraries(config: Config, given: bool) -> Finding:
    """Versions of the libraries that every run needs: each must be new enough, and be imported."""
    versions = installed(LIBRARIES)
    problems = list(_unmet())
    sound = True  # what builds on a broken one is broken, too
    for name, module in LIBRARIES.items():
        if versions[name] and (sound or name not in NEEDS_TORCH) and (reason := why_broken(module)):
            again = "torch torchvision" if name in ("torch", "torchvision") else name  # these come in pairs
            remedy = f"install it again: pip install --force-reinstall {again}"
            if "failed to map segment" in reason:
                remedy = "allow more memory (ulimit -v unlimited), or install it where programs may run (no noexec)"
            problems.append(Problem("error", f"{name} cannot be imported ({reason}); {remedy}"))
            sound = sound and name not in NEEDS_TORCH
        sound = sound and (versions[name] is not None or name not in NEEDS_TORCH)
    return Finding(_listed(versions), {"versions": versions}, tuple(problems))


def _unmet() -> Iterator[Problem]:
    """Libraries that are missing or too old."""
    try:
        found = list(unmet())
    except Exception:  # this program itself is not installed, only on the path; or there is no `packaging`
        return
    for needed, version in found:
        what = f"{version} is installed" if version else "it is not installed"
        yield Problem("error", f"{needed} is needed, but {what}: pip install '{needed}'")


def _listed(versions: Mapping[str, str | None]) -> str:
    """Versions, then what is not installed."""
    have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lacking = ", ".join(name for name, version in versions.items() if not version)
    return "; ".join(filter(None, [have, f"not installed: {lacking}" if lacking else ""]))


def of_extras(config: Config, given: bool) -> Finding:
    """Versions of the libraries that only parts need."""
    versions = installed(EXTRAS)
    backend = config.run.backend
    problems: tuple[Problem, ...] = ()
    if backend in versions and versions[backend] is None:
        line = f"run.backend = '{backend}' needs a library that is not installed: pip install 'cam-pipeline[{backend}]'"
        problems = (Problem("error", line),)
    return Finding(_listed(versions), {"versions": versions}, problems)


def of_device(config: Config, given: bool) -> Finding:
    """Where networks compute: the GPUs, or why there is none."""
    _need_torch()
    from cam_pipeline.machine.device import has_fast_bfloat16, no_fast_bfloat16, pick_device

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says the same in a longer way
        found, build = gpus(), torch_build()
        driver = None if found or config.run.device == "cpu" else nvidia_driver()
        problems = list(_of_no_gpu(build, driver)) if driver else []
        values: dict[str, Any] = {"device": None, "torch_build": build, "fast_bfloat16": None}
        values["gpus"] = [{"name": gpu.name, "total": gpu.total, "free": gpu.free} for gpu in found]
        values["driver"] = driver.version if driver else None
        try:
            device = pick_device(config.run)
        except UserError as error:
            problems.append(Problem("error", str(error)))
            return Finding(f"there is no {config.run.device}; {_build(build)}", values, tuple(problems))
    problems += _of_gpu(found[device.index or 0]) if device.type == "cuda" else ()
    fast = has_fast_bfloat16(device.type)
    if config.run.precision == "bfloat16" and not fast:
        problems.append(Problem("warning", f"{no_fast_bfloat16(device.type)}; set run.precision=float32"))
    listed = [f"{gpu.name}{_room(gpu)}" for gpu in found]
    nothing = ", but there is no GPU driver" if build and not found and not driver else ""
    parts = [str(device), *listed, _build(build) + nothing, f"bfloat16 is {'fast' if fast else 'slow'} here"]
    values |= {"device": str(device), "fast_bfloat16": fast}
    return Finding("; ".join(parts), values, tuple(problems))


def _build(build: str) -> str:
    return f"torch is built for {build or 'the CPU alone'}"


def _room(gpu: Gpu) -> str:
    return "" if gpu.total is None or gpu.free is None else f", {gigabytes(gpu.total)}, {gigabytes(gpu.free)} free"


def _of_gpu(gpu: Gpu) -> Iterator[Problem]:
    """What is wrong with the GPU that is used."""
    if gpu.failure:
        remedy = f"use --device cpu, or install a torch for this GPU ({GET_STARTED})"
        yield Problem("error", f"{gpu.name} cannot compute ({gpu.failure}); {remedy}")
    elif gpu.free is not None and gpu.free < LITTLE_MEMORY:
        free = gigabytes(gpu.free)
        yield Problem("warning", f"{gpu.name}: only {free} are free; end what uses it (nvidia-smi lists that)")


def _of_no_gpu(build: str, driver: Driver) -> Iterator[Problem]:
    """Why the GPU, whose driver is there, is not used."""
    what = f"GPU ({', '.join(driver.names)})" if driver.names else f"driver {driver.version}".strip()
    if not build.startswith("CUDA"):
        line = f"there is an NVIDIA {what}, but {_build(build)}; to use a GPU, install torch for CUDA ({GET_STARTED})"
        yield Problem("warning", line)
        return
    if hidden := hidden_by():
        yield Problem("warning", f"{hidden} hides all GPUs; unset it to use them")
        return
    reason = why_no_gpu()
    if "too old" in reason:
        remedy = f"update the driver, or install a torch for an older CUDA ({GET_STARTED})"
    else:
        remedy = "in a container, start that with the GPU (docker run --gpus all); else install the driver again"
    yield Problem("warning", f"torch finds no GPU ({reason}), though there is an NVIDIA {what}; {remedy}")


def of_memory(config: Config, given: bool, root: Path = ROOT) -> Finding:
    """Main memory, and the container's limit."""
    found = memory(root)
    total = "unknown size" if found.machine is None else gigabytes(found.machine)
    limit = "" if found.limit is None else f"; the container may use {gigabytes(found.limit)}"
    free = "" if found.free is None else f", {gigabytes(found.free)} free"
    problems: tuple[Problem, ...] = ()
    if found.free is not None and found.free < LITTLE_MEMORY:
        remedy = "end other programs, give the container more, or use --workers 1 and smaller batches"
        problems = (Problem("warning", f"only {gigabytes(found.free)} of memory are free; {remedy}"),)
    values = {"machine": found.machine, "limit": found.limit, "free": found.free}
    return Finding(f"{total}{limit}{free}", values, problems)


def of_cores(config: Config, given: bool, root: Path = ROOT) -> Finding:
    """Cores that there are, that may be used, and that will be."""
    from cam_pipeline.machine.parallel import worker_count  # late: joblib

    found, workers = cores(root), worker_count(config.run)
    allowed = min(found.seen, found.affinity or found.seen)
    if found.quota is not None and found.quota < allowed:
        few = f", of which the container may use {found.quota:g}"
    else:
        few = f", of which this process may use {allowed}" if allowed < found.seen else ""
    problems: tuple[Problem, ...] = ()
    if workers > found.usable:
        line = f"{workers} worker processes for {_counted(found.usable, 'usable core')} slow each other down"
        problems = (Problem("warning", f"{line}; leave --workers (run.workers) at 0"),)
    values = {"seen": found.seen, "affinity": found.affinity, "quota": found.quota, "usable": found.usable}
    return Finding(f"{found.seen}{few}; worker processes: {workers}", {**values, "workers": workers}, problems)


def of_threads(config: Config, given: bool, root: Path = ROOT) -> Finding:
    """Threads that torch computes with in the main process, and how they wait."""
    _need_torch()
    from cam_pipeline.machine.threads import thread_count, waiting

    count, usable, policy = thread_count(config.run.threads), cores(root).usable, waiting()
    how = f"they wait as set by {policy}" if policy else "they wait as OpenMP does by default"
    how = "they sleep while they wait (OMP_WAIT_POLICY=PASSIVE)" if policy == "OMP_WAIT_POLICY=PASSIVE" else how
    problems: tuple[Problem, ...] = ()
    if count > usable:
        line = f"{count} threads of torch for {_counted(usable, 'usable core')} slow each other down"
        problems = (Problem("warning", f"{line}; set run.threads={usable}"),)
    return Finding(f"{count} for torch; {how}", {"torch": count, "waiting": policy}, problems)


def of_crf(config: Config, given: bool) -> Finding:
    """Which CRF is used, and why."""
    if not config.refine.crf:
        return Finding("not used: refine.crf is false", {"backend": None, "why": "refine.crf is false"})
    _need_torch()
    from cam_pipeline.machine.crf_backend import crf_backend, threads_per_image

    try:
        used = crf_backend(config.refine.crf_backend, _device_type(config), threads_per_image(config.run))
    except UserError as error:
        return Finding("there is none", {"backend": None, "why": str(error)}, (Problem("error", str(error)),))
    return Finding(f"{used.name}: {used.why}", {"backend": used.name, "why": used.why})


def _device_type(config: Config) -> str:
    from cam_pipeline.machine.device import pick_device

    try:
        return pick_device(config.run).type
    except UserError:  # told where it belongs
        return "cpu"


def of_shared_memory(config: Config, given: bool) -> Finding:
    """Whether worker processes can start, and how loaded batches come from them."""
    from cam_pipeline.machine import shared_memory

    folder = shared_memory.FOLDER
    reason, ample = shared_memory.why_no_workers(), shared_memory.is_ample()
    values: dict[str, Any] = {"total": None, "free": None, "workers_can_start": not reason}
    text = f"no {folder}: the system manages it otherwise"
    if folder.is_dir():
        room = room_at(folder)
        values |= {"total": room.total, "free": room.free}
        text = f"{folder}: {gigabytes(room.total)}, {gigabytes(room.free)} free"
    values["batches_go_through_it"] = ample and not reason
    if reason:
        line = shared_memory.no_workers(reason)
        return Finding(f"{text}; no worker processes can start", values, (Problem("warning", line),))
    if ample:
        return Finding(f"{text}; batches go through it", values)
    small = values["free"] is not None and values["free"] < shared_memory.AMPLE
    remedy = "give it 1 GB or more (docker run --shm-size=1g)" if small else "raise the file size allowed (ulimit -f)"
    line = f"batches go through pipes, not through {folder}, which is slower; {remedy}"
    return Finding(f"{text}; batches go through pipes", values, (Problem("warning", line),))


def of_output(config: Config, given: bool) -> Finding:
    """Whether results can be written, and how much room there is for them."""
    room = room_at(config.folder)
    problems = []
    if room.refusal:
        line = f"nothing can be written to {config.folder} ({room.refusal})"
        problems.append(Problem("error", f"{line}; get the permission, or set output.dir to another folder"))
    elif room.free < LITTLE_DISK:
        line = f"only {gigabytes(room.free)} are free at {config.folder}; free some, or set output.dir to another disk"
        problems.append(Problem("warning", f"{line} (check-data says how much a run takes)"))
    values = {"folder": str(config.folder), "total": room.total, "free": room.free, "writable": not room.refusal}
    written = "cannot be written to" if room.refusal else "can be written to"
    return Finding(f"{config.folder}: {gigabytes(room.free)} free, {written}", values, tuple(problems))


def of_temporary(config: Config, given: bool) -> Finding:
    """The folder for temporary files, which joblib and others use."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        line = "no temporary folder can be written to; set TMPDIR to one that can"
        return Finding("none", {"free": None, "writable": False}, (Problem("error", line),))
    room = room_at(folder)
    problems: tuple[Problem, ...] = ()
    if room.refusal or room.free < LITTLE_TEMPORARY:
        what = f"nothing can be written to {folder}" if room.refusal else f"only {gigabytes(room.free)} are free there"
        problems = (Problem("warning", f"temporary files: {what}; set TMPDIR to a folder with more room"),)
    return Finding(
        f"{folder}: {gigabytes(room.free)} free", {"free": room.free, "writable": not room.refusal}, problems
    )


def of_limits(config: Config, given: bool) -> Finding:
    """What the shell or a batch system allows: open files, the size of a file, the addresses of a process."""
    import resource

    (files, _), (size, _) = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_FSIZE)
    open_files = math.inf if files == resource.RLIM_INFINITY else files
    largest = math.inf if size == resource.RLIM_INFINITY else size
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    addresses = None if limit == resource.RLIM_INFINITY else limit
    problems = []
    if open_files < FEW_FILES:
        problems.append(Problem("warning", f"only {files} files may be open at a time; raise that: ulimit -n 4096"))
    if largest < LITTLE_DISK:
        line = f"no file may be larger than {gigabytes(largest)}; raise that: ulimit -f unlimited"
        problems.append(Problem("warning", line))
    if addresses is not None and addresses < LITTLE_ADDRESSES:
        line = f"no process may have more than {gigabytes(addresses)} of addresses"
        problems.append(
            Problem("warning", f"{line}; raise that: ulimit -v unlimited, or ask the batch system for more")
        )
    many = "any number of" if open_files == math.inf else f"{files}"
    sizes = "of any size" if largest == math.inf else f"of up to {gigabytes(largest)}"
    values = {
        "open_files": None if open_files == math.inf else files,
        "file_size": None if largest == math.inf else size,
        "address_space": addresses,
    }
    room = "" if addresses is None else f", {gigabytes(addresses)} of addresses"
    return Finding(f"{many} open files, {sizes}{room}", values, tuple(problems))


def of_weights(config: Config, given: bool) -> Finding:
    """Where the weights that networks start from are. Nothing is fetched."""
    _need_torch()
    from cam_pipeline.models.backbone import check_name
    from cam_pipeline.models.hub import NO_ANSWER

    parts, values, problems = [], {}, []
    for key, weights, network, arguments in _starts(config):
        try:
            if weights == "pretrained":
                check_name(network)
            where, line = _whereabouts(weights, network, arguments)
        except UserError as error:
            where, line = "unknown", str(error)
        if line:
            certain = given and NO_ANSWER not in line  # a run is more patient
            problems.append(Problem("error" if certain else "warning", f"{key}: {line}"))
        parts.append(f"{weights if weights != 'pretrained' else network}: {where}" if weights != "none" else "")
        values[key] = {"network": network, "weights": weights, "state": where}
    return Finding("; ".join(dict.fromkeys(filter(None, parts))) or "none are asked for", values, tuple(problems))


def _starts(config: Config) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(key, weights, network, its arguments) of each pretrained half."""
    classifier, segmenter = config.classifier, config.segmenter
    yield "classifier.weights", classifier.weights, classifier.backbone, classifier.backbone_args
    if classifier.trunk:
        yield "classifier.trunk_weights", classifier.trunk_weights, classifier.trunk, classifier.trunk_args
    yield "segmenter.weights", segmenter.weights, segmenter.encoder, segmenter.encoder_args


def _whereabouts(weights: str, network: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Where weights are, and what is wrong with that ("" if nothing)."""
    from cam_pipeline.models.hub import are_kept, missing

    if weights == "none":
        return "none", ""
    if weights != "pretrained":
        there = Path(weights).is_file()
        line = f"there is no weights file {weights}; put it there, or set 'pretrained', 'none' or a path"
        return ("there", "") if there else ("missing", line)
    if are_kept(network, arguments):
        return "cached", ""
    line = missing(network, arguments, HUB_SECONDS)
    if "no pretrained weights" in line:
        return "there are none", line
    return ("not cached, offline", line) if line else ("not cached, can be fetched", "")
