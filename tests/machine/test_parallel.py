"""joblib's backends do the same work; what is missing is named."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from joblib import delayed

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import LibraryMissing, WorkerLost
from cam_pipeline.machine import parallel as parallel_module
from cam_pipeline.machine.parallel import Workers, joblib_workers, results_of

Differences = Callable[[Path, Path], list[str]]


def square(number: int) -> int:
    return number * number


def place(_: int) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize(("backend", "workers"), [("loky", 1), ("loky", 2), ("threading", 1), ("threading", 2)])
def test_results_come_in_the_order_of_the_tasks(backend: str, workers: int) -> None:
    with joblib_workers(backend, workers) as parallel:
        for count in (5, 0, 3):
            with results_of(parallel, (delayed(square)(number) for number in range(count))) as results:
                assert list(results) == [number * number for number in range(count)]


def test_processes_end_with_the_work() -> None:
    with joblib_workers("loky", 2) as parallel, results_of(parallel, map(delayed(place), range(4))) as results:
        pids = {pid for pid, _ in results}
    assert pids and os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


def test_threads_stay_in_this_process() -> None:
    with joblib_workers("threading", 2) as parallel, results_of(parallel, map(delayed(place), range(4))) as results:
        found = set(results)
    assert {pid for pid, _ in found} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in found}


def test_threads_end_with_the_work_although_it_is_broken_off() -> None:
    before = set(threading.enumerate())
    seconds = [0, 0.5, 0.5, 300, 300]
    with (
        pytest.raises(LookupError),
        joblib_workers("threading", 2) as parallel,
        results_of(parallel, map(delayed(time.sleep), seconds)) as results,
    ):
        next(results)
        raise LookupError
    assert set(threading.enumerate()) == before


def kill_own_process(number: int) -> int:
    """As the system does it with a process that takes too much memory."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(
    "backend", ["loky", pytest.param("dask", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)]
)
def test_a_worker_that_is_killed_is_told_of(backend: str) -> None:
    if backend != "loky":
        pytest.importorskip(backend)
    with (
        pytest.raises(WorkerLost, match=r"^a worker process was killed, .*--workers 1.* same command again: finished"),
        joblib_workers(backend, 2) as parallel,
        results_of(parallel, map(delayed(kill_own_process), range(50))) as results,
    ):
        for _ in results:
            pass
    with joblib_workers("loky", 2) as parallel, results_of(parallel, map(delayed(square), range(3))) as results:
        assert list(results) == [0, 1, 4], "the next work finds workers"


def square_or_die(number: int) -> int:
    return square(kill_own_process(number))


@pytest.mark.parametrize("alone", [1, 64])
def test_a_task_that_kills_its_process_costs_its_own_result_alone(monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    """Whether the tasks behind it go one by one to the end, or the pool starts again soon."""
    monkeypatch.setattr(parallel_module, "ALONE", alone)
    with Workers("loky", 2) as workers:
        found = list(workers.results(range(5), lambda number: partial(square_or_die, number)))
        assert found == [0, 1, None, 9, 16]
        assert list(workers.results([7], lambda number: partial(square, number))) == [49], "they work on"


def test_tasks_are_made_shortly_before_a_worker_is_free() -> None:
    """So that what they hold, maps read from a file, is not in memory for all images at once."""
    made: list[int] = []

    def task(number: int) -> Callable[[], int]:
        made.append(number)
        return partial(square, number)

    with Workers("loky", 1) as workers, contextlib.closing(workers.results(range(1000), task)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        assert len(made) < 500


def test_threads_of_workers_end_with_the_work_although_it_is_broken_off() -> None:
    before = set(threading.enumerate())
    seconds = [0, 0.5, 0.5, 300, 300]
    with (
        pytest.raises(LookupError),
        Workers("threading", 2) as workers,
        contextlib.closing(workers.results(seconds, lambda one: partial(time.sleep, one))) as results,
    ):
        next(results)
        raise LookupError
    assert set(threading.enumerate()) == before


def test_another_error_of_a_task_stays_what_it_is() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        joblib_workers("loky", 2) as parallel,
        results_of(parallel, map(delayed(divmod), range(3), range(3))) as results,
    ):
        list(results)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(") ")
            if int(rest.split()[1]) == pid:
                found.append(int(name.split()[0]))
    return found


def workers_of(pid: int, kind: str) -> list[int]:
    """Child processes that work; loky's and multiprocessing's helpers are others."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{child}/cmdline").read_text()
            if kind in line and "tracker" not in line:
                found.append(child)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
def test_training_whose_loader_is_killed_ends_in_one_line(commands: Any, finished: Path) -> None:
    arguments = ("train-cls", "--set", "train_cls.epochs=400")
    pid = commands.start(*arguments, "-c", "tiny.toml", "--workers", "2", "--quiet", folder=finished)
    deadline = time.monotonic() + 60
    while len(workers := workers_of(pid, "command_server")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)  # so that they are at work
    assert len(workers) == 2
    begun = time.monotonic()
    os.kill(workers[0], signal.SIGKILL)
    ended = commands.wait(pid, 60)
    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith("Error: a process that loads images was killed, most often for lack of memory; use")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert time.monotonic() - begun < 30
    assert not any(alive(worker) for worker in workers)


@pytest.mark.parametrize(("backend", "library"), [("dask", "dask"), ("ray", "ray")])
def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, backend: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with (
        pytest.raises(
            LibraryMissing,
            match=rf"run\.backend = '{backend}' needs .* not installed: pip install 'cam-pipeline\[{backend}\]'",
        ),
        joblib_workers(backend, 2),
    ):
        pytest.fail("it started")


def test_every_backend_can_be_chosen() -> None:
    for backend in ("loky", "threading", "dask", "ray"):
        assert RunSettings.model_validate({"backend": backend}).backend == backend


def remade_scores(commands: Any, folder: Path, *more: str, **options: Any) -> Any:
    for name in ("scores.h5", "pseudo_labels.h5"):
        (folder / "run" / name).unlink()
    return commands.run("make-cams", "-c", "tiny.toml", "--workers", "2", *more, folder=folder, **options)


def changed(different: list[str]) -> list[str]:
    return [name for name in different if not name.endswith("@config")]


def test_threads_make_the_same_scores(
    commands: Any, finished: Path, undisturbed: Path, differences: Differences
) -> None:
    ended = remade_scores(commands, finished, "--set", "run.backend=threading")
    assert ended.code == 0, ended.stderr
    assert "refine_cams: done" in ended.stderr
    assert changed(differences(finished / "run", undisturbed / "run")) == []
    again = commands.run("make-cams", "-c", "tiny.toml", folder=finished)
    assert again.stderr.count("nothing to do") == 3, "the backend makes nothing stale"


def test_a_scheduler_that_does_not_answer_is_named(commands: Any, finished: Path) -> None:
    address = "tcp://127.0.0.1:9"
    nobody = {"DASK_SCHEDULER_ADDRESS": address, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "200ms"}
    ended = remade_scores(commands, finished, "--set", "run.backend=dask", environment=nobody)
    assert ended.code == 2
    assert ended.stderr.splitlines()[-1].startswith(
        f"Error: run.backend = 'dask': no scheduler answers at DASK_SCHEDULER_ADDRESS = {address}; start it"
    )
    assert "Traceback" not in ended.stderr and not (finished / "run" / "scores.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_makes_the_same_scores(
    finished: Path, undisturbed: Path, differences: Differences, backend: str
) -> None:
    """As users run it: from the console script, and with stages behind it that start processes of their own."""
    pytest.importorskip(backend)
    for name in ("scores.h5", "pseudo_labels.h5", "segmenter.safetensors"):
        (finished / "run" / name).unlink()
    command = [str(Path(sys.executable).with_name("cam-pipeline")), "run", "-c", "tiny.toml", "--workers", "2"]
    command += ["--set", f"run.backend={json.dumps(backend)}"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "refine_cams: done" in done.stderr and "train_seg: done" in done.stderr and "Traceback" not in done.stderr
    assert changed(differences(finished / "run", undisturbed / "run")) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
def test_scores_are_complete_and_equal_although_a_worker_was_killed(
    commands: Any, finished: Path, tmp_path: Path, differences: Differences
) -> None:
    alone = Path(shutil.copytree(finished, tmp_path / "alone"))
    for name in ("scores.h5", "pseudo_labels.h5"):
        (finished / "run" / name).unlink()
    # Slow enough to be met at work: the iterations are of the settings of the run, so the result is another's.
    slow = ("make-cams", "-c", "tiny.toml", "--workers", "2", "--set", "refine.crf_iterations=1000")
    pid = commands.start(*slow, folder=finished)
    deadline = time.monotonic() + 60
    while len(workers := workers_of(pid, "loky")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    os.kill(workers[0], signal.SIGKILL)
    ended = commands.wait(pid, 240)
    assert ended.code == 0, ended.stderr
    assert "was killed, for lack of memory or by a crash of the CRF; the next" in ended.stderr
    assert "unrefined" not in ended.stderr
    assert commands.run(*slow, folder=alone).code == 0
    assert changed(differences(finished / "run", alone / "run")) == []


ORPHANS = """
import os, sys, time
from functools import partial
from pathlib import Path
from cam_pipeline.machine.parallel import Workers

def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    with Workers("loky", 2) as workers:
        list(workers.results(range(4), lambda number: partial(work, number)))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes by /proc")
def test_workers_end_soon_after_their_parent_is_killed(tmp_path: Path) -> None:
    """They ignore SIGTERM, and nobody else would end them."""
    program = tmp_path / "program.py"
    program.write_text(ORPHANS.replace("sys.argv[1]", repr(str(tmp_path / "ids"))))
    (tmp_path / "ids").mkdir()
    parent = subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list((tmp_path / "ids").iterdir())) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_running(path.name) for path in (tmp_path / "ids").iterdir()))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
