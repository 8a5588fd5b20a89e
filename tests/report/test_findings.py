"""What `doctor` says of machines that this one is not: every probe is replaced by values."""

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cam_pipeline.config import Config, default_config
from cam_pipeline.errors import ConfigError, LibraryMissing
from cam_pipeline.machine import crf_backend as crf_module
from cam_pipeline.machine import device as device_module
from cam_pipeline.machine import shared_memory
from cam_pipeline.machine.cores import Cores
from cam_pipeline.machine.disk import Room
from cam_pipeline.machine.gpus import Driver, Gpu
from cam_pipeline.machine.memory import Memory
from cam_pipeline.models import hub
from cam_pipeline.report import findings
from cam_pipeline.report.findings import GB, Finding, Problem, gigabytes

Check = Callable[..., Finding]


def looked_at(check: Check, *settings: str, given: bool = True) -> Finding:
    return check(default_config(settings), given)


def lines(finding: Finding) -> list[str]:
    return [f"{problem.state}: {problem.line}" for problem in finding.problems]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces functions of the module by ones that return these values."""

    def replace(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(findings, name, lambda *_, value=value: value)

    return replace


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (Finding("a"), "ok"), (Finding("a", known=False), "unknown"),
        (Finding("a", problems=(Problem("warning", "b"),)), "warning"),
        (Finding("a", problems=(Problem("warning", "b"), Problem("error", "c"))), "error"),
    ],
)  # fmt: skip
def test_state(finding: Finding, state: str) -> None:
    assert finding.state == state


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 GB"), (1.25 * GB, "1.2 GB"), (251.7 * GB, "252 GB")])
def test_gigabytes(count: float, text: str) -> None:
    assert gigabytes(count) == text


def test_program() -> None:
    found = looked_at(findings.of_program)
    assert found.state == "ok" and f"Python {found.values['python']}" in found.found


# Libraries


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """All are installed and whole, until a test changes that."""
    has = SimpleNamespace(versions=dict.fromkeys((*findings.LIBRARIES, *findings.EXTRAS), "1.0"), broken={}, unmet=[])
    monkeypatch.setattr(findings, "installed", lambda names: {name: has.versions[name] for name in names})
    monkeypatch.setattr(findings, "unmet", lambda: has.unmet)
    monkeypatch.setattr(findings, "why_broken", lambda module: has.broken.get(module, ""))
    return has


def test_all_libraries(libraries: SimpleNamespace) -> None:
    found = looked_at(findings.of_libraries)
    assert (found.state, found.values["versions"]["torch"]) == ("ok", "1.0")
    assert found.found.startswith("torch 1.0, torchvision 1.0, timm 1.0")


def test_a_broken_library_is_named_and_what_builds_on_it_is_not(libraries: SimpleNamespace) -> None:
    libraries.broken = {"torchvision": "RuntimeError: nms", "timm": "the same", "skimage": "OSError: x"}
    assert lines(looked_at(findings.of_libraries)) == [
        "error: torchvision cannot be imported (RuntimeError: nms); install it again: pip install --force-reinstall "
        "torch torchvision",
        "error: scikit-image cannot be imported (OSError: x); install it again: pip install --force-reinstall "
        "scikit-image",
    ]


def test_a_library_that_finds_no_room(libraries: SimpleNamespace) -> None:
    libraries.broken = {"torch": "ImportError: libtorch_cpu.so: failed to map segment from shared object"}
    (line,) = lines(looked_at(findings.of_libraries))
    assert "force-reinstall" not in line and "ulimit -v unlimited" in line


def test_missing_and_old_libraries(libraries: SimpleNamespace) -> None:
    libraries.versions["torch"] = None
    libraries.broken = {"timm": "No module named 'torch'"}
    libraries.unmet = [("torch>=2.6", ""), ("numpy>=1.26", "1.25")]
    found = looked_at(findings.of_libraries)
    assert lines(found) == [
        "error: torch>=2.6 is needed, but it is not installed: pip install 'torch>=2.6'",
        "error: numpy>=1.26 is needed, but 1.25 is installed: pip install 'numpy>=1.26'",
    ]
    assert found.found.endswith("; not installed: torch")


def test_without_our_own_metadata_nothing_is_said_of_needs(monkeypatch: pytest.MonkeyPatch, libraries: Any) -> None:
    def refuse() -> None:
        raise ImportError("packaging")

    monkeypatch.setattr(findings, "unmet", refuse)
    assert looked_at(findings.of_libraries).state == "ok"


def test_extras_are_needed_only_if_asked_for(libraries: SimpleNamespace) -> None:
    libraries.versions["ray"] = None
    found = looked_at(findings.of_extras)
    assert (found.state, found.found) == ("ok", "pydensecrf2 1.0, dask 1.0; not installed: ray")
    assert lines(looked_at(findings.of_extras, "run.backend=ray")) == [
        "error: run.backend = 'ray' needs a library that is not installed: pip install 'cam-pipeline[ray]'"
    ]
    assert looked_at(findings.of_extras, "run.backend=dask").state == "ok"


def test_without_torch_a_check_says_so(libraries: SimpleNamespace) -> None:
    libraries.broken = {"torch": "OSError"}
    for check in (findings.of_device, findings.of_threads, findings.of_crf, findings.of_weights):
        with pytest.raises(RuntimeError, match="torch cannot be imported"):
            looked_at(check)


# Device


@pytest.fixture
def on_cpu(put: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """No GPU and no driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(device_module, "has_fast_bfloat16", lambda kind: False)
    put(gpus=[], torch_build="", nvidia_driver=None, hidden_by="", why_no_gpu="No CUDA GPUs are available")
    return put


@pytest.fixture
def on_gpu(put: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device_module, "has_fast_bfloat16", lambda kind: True)
    put(gpus=[Gpu("NVIDIA H200", 140 * GB, 139 * GB, "")], torch_build="CUDA 12.6")
    return put


def test_gpu(on_gpu: Callable[..., None]) -> None:
    found = looked_at(findings.of_device)
    assert found.state == "ok"
    assert found.found == (
        "cuda; NVIDIA H200, 140 GB, 139 GB free; torch is built for CUDA 12.6; bfloat16 is fast here"
    )
    assert found.values == {
        "device": "cuda", "torch_build": "CUDA 12.6", "fast_bfloat16": True, "driver": None,
        "gpus": [{"name": "NVIDIA H200", "total": 140 * GB, "free": 139 * GB}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "line"),
    [
        (Gpu("T4", 16 * GB, GB, ""), "warning: T4: only 1.0 GB are free; end what uses it (nvidia-smi lists that)"),
        (
            Gpu("K80", None, None, "no kernel image"),
            "error: K80 cannot compute (no kernel image); use --device cpu, or install a torch for this GPU "
            "(https://pytorch.org/get-started)",
        ),
    ],
)
def test_gpu_that_cannot_be_used(on_gpu: Callable[..., None], gpu: Gpu, line: str) -> None:
    on_gpu(gpus=[gpu])
    assert lines(looked_at(findings.of_device)) == [line]
    assert lines(looked_at(findings.of_device, "run.device=cpu")) == []


def test_cpu(on_cpu: Callable[..., None]) -> None:
    assert looked_at(findings.of_device).found == "cpu; torch is built for the CPU alone; bfloat16 is slow here"
    on_cpu(torch_build="CUDA 13.0")
    found = looked_at(findings.of_device)
    assert (found.state, "for CUDA 13.0, but there is no GPU driver;" in found.found) == ("ok", True)


def test_bfloat16_that_is_asked_for(on_cpu: Callable[..., None]) -> None:
    assert lines(looked_at(findings.of_device, "run.precision=bfloat16")) == [
        "warning: run.precision = 'bfloat16': this CPU has no fast bfloat16, so float32 is used; "
        "set run.precision=float32"
    ]


DRIVER = Driver("535.104", ())


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"nvidia_driver": DRIVER},
            "there is an NVIDIA driver 535.104, but torch is built for the CPU alone; to use a GPU, install torch for "
            "CUDA (https://pytorch.org/get-started)",
        ),
        (
            {"nvidia_driver": Driver("", ("T4",))},
            "there is an NVIDIA GPU (T4), but torch is built for the CPU alone; to use a GPU, install torch for "
            "CUDA (https://pytorch.org/get-started)",
        ),
        (
            {"nvidia_driver": DRIVER, "torch_build": "CUDA 13.0", "why_no_gpu": "The driver is too old (found 12020)"},
            "torch finds no GPU (The driver is too old (found 12020)), though there is an NVIDIA driver 535.104; "
            "update the driver, or install a torch for an older CUDA (https://pytorch.org/get-started)",
        ),
        (
            {"nvidia_driver": DRIVER, "torch_build": "CUDA 13.0"},
            "torch finds no GPU (No CUDA GPUs are available), though there is an NVIDIA driver 535.104; in a "
            "container, start that with the GPU (docker run --gpus all); else install the driver again",
        ),
        (
            {"nvidia_driver": DRIVER, "torch_build": "CUDA 13.0", "hidden_by": "CUDA_VISIBLE_DEVICES"},
            "CUDA_VISIBLE_DEVICES hides all GPUs; unset it to use them",
        ),
    ],
)
def test_why_a_gpu_is_not_used(on_cpu: Callable[..., None], values: dict[str, Any], line: str) -> None:
    on_cpu(**values)
    assert lines(looked_at(findings.of_device)) == [f"warning: {line}"]
    assert lines(looked_at(findings.of_device, "run.device=cpu")) == []
    asked = looked_at(findings.of_device, "run.device=cuda")
    assert lines(asked)[0] == f"warning: {line}" and asked.state == "error" and asked.values["device"] is None


# Memory, cores, threads


@pytest.mark.parametrize(
    ("memory", "text", "state"),
    [
        (Memory(32 * GB, None, 16 * GB), "32.0 GB, 16.0 GB free", "ok"),
        (Memory(32 * GB, 4 * GB, 3 * GB), "32.0 GB; the container may use 4.0 GB, 3.0 GB free", "ok"),
        (Memory(32 * GB, 4 * GB, GB), "32.0 GB; the container may use 4.0 GB, 1.0 GB free", "warning"),
        (Memory(16 * GB, None, None), "16.0 GB", "ok"),
        (Memory(None, None, None), "unknown size", "ok"),
    ],
)
def test_memory(put: Callable[..., None], memory: Memory, text: str, state: str) -> None:
    put(memory=memory)
    found = looked_at(findings.of_memory)
    assert (found.found, found.state) == (text, state)


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        (Cores(2, 2, None), "2; worker processes: 2"),
        (Cores(64, 64, None), "64; worker processes: 8"),
        (Cores(64, None, None), "64; worker processes: 8"),
        (Cores(64, 4, None), "64, of which this process may use 4; worker processes: 4"),
        (Cores(64, 64, 1.5), "64, of which the container may use 1.5; worker processes: 2"),
        (Cores(64, 4, 8.0), "64, of which this process may use 4; worker processes: 4"),
    ],
)
def test_cores(put: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cores: Cores, text: str) -> None:
    put(cores=cores)
    monkeypatch.setattr("cam_pipeline.machine.parallel.usable_cores", lambda: cores.usable)
    found = looked_at(findings.of_cores)
    assert (found.found, found.state, found.values["usable"]) == (text, "ok", cores.usable)


def test_more_workers_and_threads_than_cores(put: Callable[..., None]) -> None:
    put(cores=Cores(64, 64, 2.0))
    assert lines(looked_at(findings.of_cores, "run.workers=8")) == [
        "warning: 8 worker processes for 2 usable cores slow each other down; leave --workers (run.workers) at 0"
    ]
    assert lines(looked_at(findings.of_threads, "run.threads=64")) == [
        "warning: 64 threads of torch for 2 usable cores slow each other down; set run.threads=2"
    ]
    assert looked_at(findings.of_threads, "run.threads=2").state == "ok"


@pytest.mark.parametrize(
    ("policy", "how"),
    [
        ("OMP_WAIT_POLICY=PASSIVE", "they sleep while they wait (OMP_WAIT_POLICY=PASSIVE)"),
        ("GOMP_SPINCOUNT=9", "they wait as set by GOMP_SPINCOUNT=9"),
        ("", "they wait as OpenMP does by default"),
    ],
)
def test_how_threads_wait(monkeypatch: pytest.MonkeyPatch, policy: str, how: str) -> None:
    monkeypatch.setattr("cam_pipeline.machine.threads.waiting", lambda: policy)
    assert looked_at(findings.of_threads, "run.threads=1").found == f"1 for torch; {how}"


# CRF


def test_crf(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(wanted: str, device_type: str, threads: int) -> crf_module.CrfBackend:
        return crf_module.CrfBackend("torch", f"{wanted} on {device_type}, threads: {threads}")

    monkeypatch.setattr(crf_module, "crf_backend", backend)
    assert looked_at(findings.of_crf, "run.device=cpu", "run.workers=2").found == "torch: auto on cpu, threads: 1"
    alone = looked_at(findings.of_crf, "run.device=cpu", "run.workers=1", "run.threads=3")
    assert alone.found == "torch: auto on cpu, threads: 3"
    assert looked_at(findings.of_crf, "refine.crf=false").found == "not used: refine.crf is false"


def test_no_crf(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LibraryMissing("pydensecrf cannot be imported; pip install pydensecrf2")

    monkeypatch.setattr(crf_module, "crf_backend", refuse)
    assert lines(looked_at(findings.of_crf)) == ["error: pydensecrf cannot be imported; pip install pydensecrf2"]


# Disks


@pytest.fixture
def shm(put: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A folder for shared memory with this much free, and what the module says of it."""
    is_so = SimpleNamespace(free=2 * GB, reason="", ample=True)
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(findings, "room_at", lambda path: Room(path, 2 * GB, is_so.free, ""))
    monkeypatch.setattr(shared_memory, "why_no_workers", lambda: is_so.reason)
    monkeypatch.setattr(shared_memory, "is_ample", lambda: is_so.ample)
    return is_so


def test_shared_memory(shm: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked_at(findings.of_shared_memory)
    assert (found.found, found.state) == (f"{tmp_path}: 2.0 GB, 2.0 GB free; batches go through it", "ok")
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "absent")
    found = looked_at(findings.of_shared_memory)
    assert found.found.endswith("absent: the system manages it otherwise; batches go through it")


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (GB / 16, "give it 1 GB or more (docker run --shm-size=1g)"),
        (2 * GB, "raise the file size allowed (ulimit -f)"),
    ],
)
def test_little_shared_memory(shm: SimpleNamespace, tmp_path: Path, free: int, remedy: str) -> None:
    shm.free, shm.ample = free, False
    assert lines(looked_at(findings.of_shared_memory)) == [
        f"warning: batches go through pipes, not through {tmp_path}, which is slower; {remedy}"
    ]


def test_no_shared_memory(shm: SimpleNamespace) -> None:
    shm.reason = "Permission denied"
    found = looked_at(findings.of_shared_memory)
    assert found.state == "warning" and "no worker processes can start: all is done in this" in lines(found)[0]
    assert not found.values["workers_can_start"] and not found.values["batches_go_through_it"]


@pytest.mark.parametrize(
    ("free", "refusal", "text", "problems"),
    [
        (50 * GB, "", "runs/a: 50.0 GB free, can be written to", []),
        (
            2 * GB,
            "",
            "runs/a: 2.0 GB free, can be written to",
            [
                "warning: only 2.0 GB are free at runs/a; free some, or set output.dir to another disk (check-data "
                "says how much a run takes)"
            ],
        ),
        (
            2 * GB,
            "Read-only file system",
            "runs/a: 2.0 GB free, cannot be written to",
            [
                "error: nothing can be written to runs/a (Read-only file system); get the permission, or set "
                "output.dir to another folder"
            ],
        ),
    ],
)
def test_output(put: Callable[..., None], free: int, refusal: str, text: str, problems: list[str]) -> None:
    put(room_at=Room(Path("/"), 100 * GB, free, refusal))
    found = looked_at(findings.of_output, "output.dir=runs/a")
    assert (found.found, lines(found)) == (text, problems)


def test_without_a_config_all_run_folders_are_meant(put: Callable[..., None]) -> None:
    put(room_at=Room(Path("/"), 100 * GB, 50 * GB, ""))
    assert looked_at(findings.of_output).values["folder"] == "outputs"


@pytest.mark.parametrize(
    ("free", "refusal", "problem"),
    [
        (2 * GB, "", ""),
        (GB // 2, "", "only 0.5 GB are free there"),
        (2 * GB, "Read-only file system", "nothing can be written to /tmp"),
    ],
)
def test_temporary_folder(put: Callable[..., None], monkeypatch: Any, free: int, refusal: str, problem: str) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")
    put(room_at=Room(Path("/tmp"), 100 * GB, free, refusal))
    expected = f"warning: temporary files: {problem}; set TMPDIR to a folder with more room"
    assert lines(looked_at(findings.of_temporary)) == ([expected] if problem else [])


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    assert lines(looked_at(findings.of_temporary)) == [
        "error: no temporary folder can be written to; set TMPDIR to one that can"
    ]


@pytest.mark.parametrize(
    ("files", "size", "addresses", "text", "problems"),
    [
        (1024, -1, -1, "1024 open files, of any size", []),
        (-1, 9 * GB, 64 * GB, "any number of open files, of up to 9.0 GB, 64.0 GB of addresses", []),
        (
            1024,
            -1,
            4 * GB,
            "1024 open files, of any size, 4.0 GB of addresses",
            [
                "warning: no process may have more than 4.0 GB of addresses; raise that: ulimit -v unlimited, or ask "
                "the batch system for more"
            ],
        ),
        (
            100,
            GB,
            -1,
            "100 open files, of up to 1.0 GB",
            [
                "warning: only 100 files may be open at a time; raise that: ulimit -n 4096",
                "warning: no file may be larger than 1.0 GB; raise that: ulimit -f unlimited",
            ],
        ),
    ],
)
def test_limits(
    monkeypatch: pytest.MonkeyPatch, files: int, size: int, addresses: int, text: str, problems: list[str]
) -> None:
    import resource

    limits = {
        resource.RLIMIT_NOFILE: (files, -1),
        resource.RLIMIT_FSIZE: (size, -1),
        resource.RLIMIT_AS: (addresses, -1),
    }
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    found = looked_at(findings.of_limits)
    assert (found.found, lines(found)) == (text, problems)


# Weights


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Which are cached, and why the others cannot be had."""
    has = SimpleNamespace(kept=set(), missing="", patience=[])

    def missing(name: str, arguments: object, patience: float) -> str:
        has.patience.append(patience)
        return str(has.missing)

    monkeypatch.setattr(hub, "are_kept", lambda name, arguments: name in has.kept)
    monkeypatch.setattr(hub, "missing", missing)
    monkeypatch.setattr("cam_pipeline.models.backbone.check_name", lambda name: None)
    return has


def test_weights_that_are_here_or_can_be_fetched(weights: SimpleNamespace) -> None:
    weights.kept = {"resnet50"}
    found = looked_at(findings.of_weights)
    assert (found.found, found.state) == ("resnet50: cached; resnet101: not cached, can be fetched", "ok")
    assert weights.patience == [findings.HUB_SECONDS] and findings.HUB_SECONDS <= 2
    assert looked_at(findings.of_weights, "segmenter.encoder=resnet50").found == "resnet50: cached"


OFFLINE = hub.cannot_be_loaded("resnet101", "they are not on this machine, and a cannot be reached: x")
SILENT = hub.cannot_be_loaded("resnet101", "they are not on this machine, and a cannot be reached: no answer in 2 s")


@pytest.mark.parametrize(
    ("line", "given", "state"),
    [(OFFLINE, True, "error"), (OFFLINE, False, "warning"), (SILENT, True, "warning"), (SILENT, False, "warning")],
)
def test_weights_that_cannot_be_had(weights: SimpleNamespace, line: str, given: bool, state: str) -> None:
    weights.kept, weights.missing = {"resnet50"}, line
    found = looked_at(findings.of_weights, given=given)
    assert lines(found) == [f"{state}: segmenter.weights: {line}"]
    assert found.found == "resnet50: cached; resnet101: not cached, offline"


def test_weights_of_a_hybrid_are_those_of_both(weights: SimpleNamespace) -> None:
    weights.kept = {"resnet50", "resnet18"}
    asked = ["classifier.trunk=resnet18", "segmenter.weights=none", "classifier.weights=none"]
    found = looked_at(findings.of_weights, *asked)
    assert found.found == "resnet18: cached" and list(found.values) == [
        "classifier.weights", "classifier.trunk_weights", "segmenter.weights",
    ]  # fmt: skip


def test_weights_nobody_has(weights: SimpleNamespace) -> None:
    weights.missing = "timm has no pretrained weights of 'a'; set weights to a file, or to 'none'"
    assert looked_at(findings.of_weights).found == "resnet50: there are none; resnet101: there are none"


def test_weights_files(weights: SimpleNamespace, tmp_path: Path) -> None:
    there, absent = tmp_path / "a.pth", tmp_path / "b.pth"
    there.touch()
    found = looked_at(findings.of_weights, f"classifier.weights={there}", f"segmenter.weights={absent}")
    assert found.found == f"{there}: there; {absent}: missing"
    assert lines(found) == [
        f"error: segmenter.weights: there is no weights file {absent}; put it there, or set 'pretrained', 'none' or a "
        "path"
    ]


def test_no_weights_are_asked_for(weights: SimpleNamespace) -> None:
    found = looked_at(findings.of_weights, "classifier.weights=none", "segmenter.weights=none")
    assert (found.found, found.state, weights.patience) == ("none are asked for", "ok", [])


def test_network_that_timm_lacks(weights: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConfigError(f"timm has no model '{name}'; near: none")

    monkeypatch.setattr("cam_pipeline.models.backbone.check_name", refuse)
    found = looked_at(findings.of_weights, "segmenter.weights=none")
    assert lines(found) == ["error: classifier.weights: timm has no model 'resnet50'; near: none"]


def test_default_config_takes_settings() -> None:
    assert default_config(["run.workers=3"]).run.workers == 3
    assert default_config().folder == Path("outputs") and default_config(["output.dir=a"]).folder == Path("a")
    assert default_config().classifier == Config().classifier
    with pytest.raises(ConfigError, match=r"^command line: .*did you mean"):
        default_config(["run.worker=3"])
