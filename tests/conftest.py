"""Shared by all tests: no network, no display, no GPU unless asked for; tiny runs of the whole pipeline."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Set before torch, timm and matplotlib are imported, here or in a subprocess of a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # floating-point sums then come out alike in every process

# A slow machine must not fail a property test, and a failure must come back in the next run.
settings.register_profile("cam-pipeline", deadline=None, derandomize=True)
settings.load_profile("cam-pipeline")

ROOT = Path(__file__).resolve().parents[1]

TINY = """
[data]
root = "data"

[classifier]
backbone = "resnet10t"
backbone_args = { channels = [8, 16, 24, 32], stem_width = 8 }
weights = "none"
stride = 16

[train_cls]
epochs = 2
batch_size = 8
crop = 48
optimizer = "adamw"
lr = 1e-3
checkpoint_seconds = 0.0

[cam]
scales = [1.0]
batch_size = 4

[refine]
background = 0.3
crf_iterations = 2

[segmenter]
encoder = "resnet10t"
encoder_args = { channels = [8, 16, 24, 32], stem_width = 8 }
weights = "none"

[train_seg]
epochs = 2
batch_size = 8
crop = 48
optimizer = "adamw"
lr = 1e-3
checkpoint_seconds = 0.0

[run]
device = "cpu"
workers = 1

[output]
dir = "run"
"""
"""All stages on 24 + 8 images in about two seconds: three steps an epoch, a checkpoint after each."""

ARTEFACTS = ("classifier.safetensors", "cams.h5", "scores.h5", "pseudo_labels.h5", "segmenter.safetensors")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests do not need it

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is its exit code, minus the number of the signal that killed it; None: stopped."""

    code: int | None
    stdout: str
    stderr: str


class CommandServer:
    """Starts `cam-pipeline` commands in forked processes (see command_server.py); `wait` says how they ended."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, itertools.count()
        self.outputs: dict[int, tuple[Path, Path]] = {}
        command = [sys.executable, str(ROOT / "tests" / "robustness" / "command_server.py")]
        # One thread: floating-point sums then come out alike in every process.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._answer(300) == "ready"

    def start(
        self,
        *arguments: str,
        folder: Path,
        patch: Mapping[str, Any] | None = None,
        signal_at: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a command in a folder; its process id, which is its process group's, too."""
        outputs = [self.logs / f"{next(self.count):04d}.{name}" for name in ("stdout", "stderr")]
        request = {
            "arguments": arguments, "folder": str(folder), "patch": patch or {}, "signal_at": signal_at,
            "stdout": str(outputs[0]), "stderr": str(outputs[1]), "environment": environment or {},
        }  # fmt: skip
        pid = int(self._ask(request, 300)["pid"])
        self.outputs[pid] = outputs[0], outputs[1]
        return pid

    def wait(self, pid: int, seconds: float = 300) -> Ended:
        """Wait until a command ends or is stopped; one that takes longer is killed, and the test fails."""
        answer = self._ask({"wait": pid, "seconds": seconds}, seconds + 300)
        stdout, stderr = (path.read_text() for path in self.outputs[pid])
        assert "late" not in answer, f"still running after {seconds} s\n{stdout}\n{stderr}"
        return Ended(answer.get("code"), stdout, stderr)

    def run(self, *arguments: str, folder: Path, **more: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.wait(self.start(*arguments, folder=folder, **more))

    def close(self) -> None:
        """End the server and whatever it started that still runs."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = self._answer(seconds)
        return answer

    def _answer(self, seconds: float) -> Any:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, "the command server does not answer"
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """Runs `cam-pipeline` in processes of their own, quickly."""
    server = CommandServer(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 24 training and 8 validation images, 48 x 64; not to be changed."""
    from cam_pipeline.data.demo.synthetic import generate

    root = tmp_path_factory.mktemp("tiny") / "data"
    generate(root, train=24, val=8, size=(48, 64))
    return root


@pytest.fixture(scope="session")
def new_workspace(tiny_data: Path) -> Callable[[Path], Path]:
    """Makes a folder in which `-c tiny.toml` works, with the run folder `run` and a copy of the data in `data`.

    All paths in the config are relative, so that runs in different folders write equal files.
    """

    def make(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "tiny.toml").write_text(TINY)
        shutil.copytree(tiny_data, folder / "data")
        return folder

    return make


@pytest.fixture
def workspace(new_workspace: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A folder with `tiny.toml` and data, where nothing has run yet."""
    return new_workspace(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(
    commands: CommandServer, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A workspace after one `cam-pipeline run` that nothing disturbed; not to be changed."""
    folder = new_workspace(tmp_path_factory.mktemp("undisturbed"))
    ended = commands.run("run", "-c", "tiny.toml", folder=folder)
    assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of `undisturbed` that a test may change."""
    return Path(shutil.copytree(undisturbed, tmp_path / "finished"))


MAY_CHANGE = {"lock", "config.toml", "digests.json"}
"""These tell who worked here last, with what settings, and what was read; they hold no result."""


def results_in(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of a run folder that holds a result."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name not in MAY_CHANGE}


@pytest.fixture
def mistake(commands: CommandServer, finished: Path) -> Callable[..., str]:
    """Runs a command in `finished` that must fail as a user's mistake; gives the line it says."""

    def run(*arguments: str, config: str = "tiny.toml", **more: Any) -> str:
        before = results_in(finished / "run")
        ended = commands.run(*arguments, "-c", config, "--quiet", folder=finished, **more)
        assert ended.code == 2, f"{ended.code}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith("Error: ")
        after = results_in(finished / "run")
        assert {name: after.get(name) for name in before} == before
        return ended.stderr.removeprefix("Error: ")

    return run


@pytest.fixture(scope="session")
def differences() -> Callable[[Path, Path], list[str]]:
    """Names of the datasets, tensors and attributes that are not exactly equal in two run folders."""
    return find_differences


def find_differences(first: Path, second: Path) -> list[str]:
    """What of the artefacts differs, bit by bit; a file that is missing on one side counts."""
    one, other = stored_values(first), stored_values(second)
    return sorted(name for name in one.keys() | other.keys() if not same(one.get(name), other.get(name)))


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape and every bit (so that NaN equals NaN and 0.0 is not -0.0)."""
    if one is None or other is None:
        return one is other
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype == object else one.tobytes() == other.tobytes()


def stored_values(folder: Path) -> dict[str, Any]:
    """Everything that the artefacts of a run folder hold, by file and name."""
    found: dict[str, Any] = {}
    for path in (folder / name for name in ARTEFACTS if (folder / name).is_file()):
        values = hdf5_values(path) if path.suffix == ".h5" else safetensors_values(path)
        found |= {f"{path.name}:{name}": value for name, value in values.items()}
    return found


def hdf5_values(path: Path) -> dict[str, Any]:
    """Every dataset, and every attribute as `name@key`."""
    import h5py

    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})

    with h5py.File(path, "r") as file:
        note("/", file)
        file.visititems(note)
    return found


def safetensors_values(path: Path) -> dict[str, Any]:
    """Every tensor, and the metadata as `@`."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors | {"@": json.dumps(file.metadata(), sort_keys=True)}
