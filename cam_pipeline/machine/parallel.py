"""Work on many images at a time by joblib, on the backend that the user chose."""

import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

from joblib import Parallel, parallel_config
from joblib.externals.loky import get_reusable_executor

from cam_pipeline.errors import ConfigError, LibraryMissing, WorkerLost
from cam_pipeline.machine.interrupt import workers_start_deaf

LOST = ("BrokenProcessPool", "KilledWorker", "WorkerCrashedError")
"""What loky, Dask and Ray raise when a worker process is gone; by name, as two of them are optional."""


@contextmanager
def joblib_workers(backend: str, workers: int) -> Iterator[Parallel]:
    """A `joblib.Parallel` for `results_of`. Backends as in `run.backend`; a cluster has workers of its own number.

    Raises LibraryMissing for a backend that is not installed, ConfigError where no Dask scheduler answers, WorkerLost
    when a worker process is gone before its work is done.
    """
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
        # The image that a thread is at can not be dropped, and a thread inside the CRF would crash Python's exit.
        for thread in set(threading.enumerate()) - before if backend == "threading" else ():
            thread.join()
    if backend == "loky" and workers > 1:
        get_reusable_executor(reuse=True).shutdown(wait=True)  # idle workers would keep their memory for minutes


@contextmanager
def results_of(parallel: Parallel, tasks: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The results in the order of the tasks; those that are left when a stop comes are dropped."""
    with workers_start_deaf():
        results = parallel(tasks)
    if not parallel.return_generator:
        yield iter(results)
        return
    with warnings.catch_warnings(), closing(results):
        warnings.filterwarnings("ignore", module="joblib")  # advice to those who leave results
        yield results


def _parallel(backend: str, workers: int) -> Parallel:
    # Each worker has a core to itself: with more threads than that, BLAS and torch would wait for one another.
    threads = {"inner_max_num_threads": 1} if backend == "loky" and workers > 1 else {}
    with parallel_config(backend=_dask_backend() if backend == "dask" else backend, **threads):
        try:
            return Parallel(n_jobs=workers, return_as="generator")
        except ValueError:  # Ray's backend gives complete lists only
            return Parallel(n_jobs=workers)


def _started(backend: str, workers: int) -> AbstractContextManager[Any]:
    """What must run beside the workers: a Dask client; Ray starts by itself."""
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
    """joblib's backend for the Dask client that runs, but one that tells of tasks that Dask has given up.

    joblib's own (1.6) gives such a task an error without telling whoever waits for it, who so waits for ever.
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

    logging.getLogger("distributed").setLevel(logging.WARNING)  # it tells of every connection
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
