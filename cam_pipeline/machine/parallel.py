"""Work on many images at a time with joblib, on the backend that the user chose."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from typing import Any, Self, TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import ConfigError, LibraryMissing, WorkerLost
from cam_pipeline.machine.cores import usable_cores
from cam_pipeline.machine.interrupt import start_worker, workers_start_deaf
from cam_pipeline.machine.shared_memory import workers_can_start

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

KILLED = "a worker process was killed, for lack of memory or by a crash of the CRF"
ALONE = 64
"""Number of tasks that run one by one after a worker is lost: any task in flight may have killed it."""
LOST = ("BrokenProcessPool", "KilledWorker", "WorkerCrashedError")
"""Errors of loky, Dask and Ray about a lost worker process; by name, as two of these libraries are optional."""


class Workers:
    """Worker processes (or threads) for many tasks; a context manager. A task that kills its process is found.

    `backend` as in `run.backend`; a Dask or Ray cluster has its own number of workers.
    """

    def __init__(self, backend: str, workers: int) -> None:
        self.backend, self.workers = backend, workers
        self._opened = ExitStack()
        self._parallel: Parallel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._parallel = None
        self._opened.__exit__(*error)

    def results(
        self, items: Sequence[Item], task: Callable[[Item], Callable[[], Result]]
    ) -> Generator[Result | None, None, None]:
        """The result of `task(item)()` for every item, in order; None for a task that kills its worker process.

        `task` is called in this process, shortly before a worker is free; its return value is pickled. Errors as in
        `joblib_workers`, but WorkerLost only on a cluster (Dask, Ray): loky does the tasks after a loss one by one for
        a while.
        """
        done = 0
        while done < len(items):
            try:
                for found in self._together(delayed(task(item))() for item in items[done:]):
                    done += 1
                    yield found
            except WorkerLost:
                if self.backend != "loky":
                    raise
                few = items[done : done + ALONE]
                logger.warning("%s; the next %d images are done one by one", KILLED, len(few))
                for found in survived([task(item) for item in few]):
                    done += 1
                    yield found

    def _together(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Results of delayed tasks. After a worker's error the next call starts new workers."""
        if self._parallel is None:
            self._parallel = self._opened.enter_context(joblib_workers(self.backend, self.workers))
        try:
            with results_of(self._parallel, tasks) as results:
                yield from results
        except Exception as error:
            self.__exit__(type(error), error, error.__traceback__)  # raises WorkerLost if a worker is lost
            raise


def survived(tasks: Sequence[Callable[[], Result]]) -> Iterator[Result | None]:
    """Results of tasks that run one at a time in a process of their own; None for one that kills it."""
    done = 0
    while done < len(tasks):
        try:
            with joblib_workers("loky", 2) as parallel:  # two: a single one would be this process
                for task in tasks[done:]:
                    with results_of(parallel, [delayed(task)()]) as results:
                        found = next(results)
                    done += 1
                    yield found
        except WorkerLost:
            done += 1
            yield None


def worker_count(run: RunSettings, processes: int = 1) -> int:
    """Number of worker processes: `run.workers`, else one for each core that this process may use, at most 8.

    If `processes` on this machine work at the same time, they share the cores.
    """
    return run.workers or min(max(usable_cores() // processes, 1), 8)


@contextmanager
def joblib_workers(backend: str, workers: int) -> Iterator[Parallel]:
    """A `joblib.Parallel` for `results_of`. Backends as in `run.backend`; a cluster has its own number of workers.

    Raises LibraryMissing for a backend that is not installed, ConfigError if no Dask scheduler answers, WorkerLost if a
    worker process is gone before its work is done.
    """
    if backend == "loky" and not workers_can_start():
        backend, workers = "sequential", 1
    before = set(threading.enumerate())
    try:
        with _started(backend, workers), _parallel(backend, workers) as parallel:
            yield parallel
    except Exception as error:
        if not any(kind.__name__ in LOST for kind in type(error).__mro__):
            raise
        raise WorkerLost(
            "a worker process was killed, most often for lack of memory; use fewer (--workers 1), then start the same "
            "command again: finished work is kept"
        ) from error
    finally:
        # Threads cannot be stopped half-way through an image, and one inside the CRF would crash Python's exit.
        for thread in set(threading.enumerate()) - before if backend == "threading" else ():
            thread.join()
    if backend == "loky" and workers > 1:
        get_reusable_executor(reuse=True).shutdown(wait=True)  # idle workers would keep their memory for minutes


@contextmanager
def results_of(parallel: Parallel, tasks: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The results in the order of the tasks; results left at the end of the block are dropped."""
    with workers_start_deaf():
        results = parallel(tasks)
    if not parallel.return_generator:
        yield iter(results)
        return
    with warnings.catch_warnings(), closing(results):
        warnings.filterwarnings("ignore", module="joblib")  # its advice about results that are not used
        yield results


def _parallel(backend: str, workers: int) -> Parallel:
    # Each worker has one core: with more than one thread each, BLAS and torch would wait for one another.
    in_processes = backend == "loky" and workers > 1
    more: dict[str, Any] = {"inner_max_num_threads": 1, "initializer": start_worker, "initargs": (os.getpid(),)}
    with parallel_config(backend=_dask_backend() if backend == "dask" else backend, **(more if in_processes else {})):
        try:
            return Parallel(n_jobs=workers, return_as="generator")
        except ValueError:  # Ray's backend gives complete lists only
            return Parallel(n_jobs=workers)


def _started(backend: str, workers: int) -> AbstractContextManager[Any]:
    """A context in which the workers can run: a Dask client; Ray starts by itself."""
    try:
        if backend == "dask":
            return _dask_client(workers)
        if backend == "ray":
            from ray.util.joblib import register_ray  # late: optional

            register_ray()
    except ImportError as error:
        raise LibraryMissing(
            f"run.backend = '{backend}' needs a library that is not installed: pip install 'cam-pipeline[{backend}]'"
        ) from error
    return nullcontext()


def _dask_backend() -> Any:
    """joblib's backend for the running Dask client, with errors for tasks that Dask has given up.

    joblib's own backend (1.6) does not pass these errors on, so whoever waits for such a task waits forever.
    """
    from joblib._dask import DaskDistributedBackend  # late: optional

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def submit(self, func: Any, callback: Any = None) -> Any:
            def tell(done: Any) -> None:
                if done.exception() is not None:
                    callback(done.exception())

            future = super().submit(func, callback)
            future.add_done_callback(tell)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

    return Backend()


def _dask_client(workers: int) -> AbstractContextManager[Any]:
    """A client of the scheduler that DASK_SCHEDULER_ADDRESS names, else of a cluster of processes on this machine."""
    import dask  # late: optional
    from dask.distributed import Client

    logging.getLogger("distributed").setLevel(logging.WARNING)  # it logs every connection
    address = dask.config.get("scheduler-address", None)
    try:
        if address:
            return Client(address)  # type: ignore[no-untyped-call]
        with workers_start_deaf():
            return Client(  # type: ignore[no-untyped-call]
                n_workers=workers, threads_per_worker=1, dashboard_address=":0"
            )
    except OSError as error:
        raise ConfigError(
            f"run.backend = 'dask': no scheduler answers at DASK_SCHEDULER_ADDRESS = {address}; start it, or unset it"
        ) from error
