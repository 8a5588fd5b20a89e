"""Shared by all tests: no network, no display, no GPU unless asked for; tiny runs of the whole pipeline."""

import gc
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import CommandServer
from comparison import find_differences, results_in
from hypothesis import settings

# Set before torch, timm and matplotlib are imported, here or in a subprocess of a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # floating-point sums then come out alike in every process

# A slow machine must not fail a property test, and a failure must come back in the next run.
settings.register_profile("cam-pipeline", deadline=None, derandomize=True)
settings.load_profile("cam-pipeline")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` means. Each comes to 3 GB with the commands that it runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    workers = min(cores, int(memory // 3), 8)
    return workers if workers > 1 else 0  # one alone would only add its start


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    gc.disable()  # what is imported and collected is no garbage, and looking through it takes two seconds
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests do not need it

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests neither read nor change what the user's cache folder holds, such as times measured on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
        shutil.copy(ROOT / "tests" / "robustness" / "tiny.toml", folder)
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
