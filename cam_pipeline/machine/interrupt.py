"""Ctrl-C and the other signals that ask for an end: the first stops at the next safe point, the second at once."""

import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from cam_pipeline.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; `kill` and the end of a container; a closed terminal; SLURM's warning before the time is up."""
SECONDS_BETWEEN_LOOKS = 1.0

_received: list[int] = []
_listeners: list[Callable[[], None]] = []
_deaf: list[bool] = []


def stop_requested() -> bool:
    """True after the first of the STOPPING signals inside `graceful_stop`."""
    return bool(_received)


def raise_if_stopped() -> None:
    """Leave a loop at a point where nothing is half done. Raises Interrupted after the first signal.

    Calls the functions of `listening`, which may raise for reasons of their own.
    """
    if _received:
        raise Interrupted(f"stopped by {signal.Signals(_received[0]).name}; finished work is saved")
    for listener in _listeners:
        listener()


@contextmanager
def listening(listener: Callable[[], None]) -> Iterator[None]:
    """Let `raise_if_stopped` call `listener`, too, which raises if the work should end without a signal."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def ignore_from_now_on() -> None:
    """Ignore the STOPPING signals until this process, which is about to end in order, is gone."""
    _deaf.append(True)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle signals inside. An ignored SIGHUP stays ignored: `nohup` asks for that."""
    hears_hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    numbers = [number for number in numbers if hears_hangup or number != signal.SIGHUP]
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, before in zip(numbers, previous, strict=True):
            if not _deaf:
                signal.signal(number, before)


def _leave_terminal() -> None:
    """Write to nowhere in place of a terminal that is gone: an error would end the work before it is saved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        try:
            is_device = stat.S_ISCHR(os.fstat(number).st_mode)
        except OSError:  # it is closed
            continue
        if is_device:
            os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def graceful_stop() -> Iterator[None]:
    """Turn the first STOPPING signal into a request that loops honour; the old handlers come back at exit."""

    def request(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if _received:
            raise KeyboardInterrupt
        _received.append(number)

    try:
        with _handled(STOPPING, request):
            yield
    finally:
        _received.clear()


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Let the other STOPPING signals raise KeyboardInterrupt, as Ctrl-C does; `graceful_stop` inside goes first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        raise KeyboardInterrupt

    with _handled(STOPPING[1:], interrupt):
        yield


@contextmanager
def child_handler_kept() -> Iterator[None]:
    """Use the default SIGCHLD handler inside, and restore the present one at the end.

    Only the main thread may set handlers; in another thread nothing changes.
    """
    before = signal.getsignal(signal.SIGCHLD)  # None: not set from Python, so it could not be restored
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def workers_start_deaf() -> Iterator[None]:
    """Block the STOPPING signals for processes that start inside, even before they can call `ignore_in_worker`.

    Signals that arrive meanwhile reach this process at the end of the block.
    """
    resource_tracker.ensure_running()  # if joblib started it inside, it would unblock the signals (older Pythons)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(parent: int) -> None:
    """The first call in a worker process: it leaves signals to its parent, the process `parent`, and ends with it.

    A killed parent cannot end its workers, and they ignore the signals by which others would. A thread looks once a
    second; Linux's PR_SET_PDEATHSIG would end a worker with the thread that started it, although the process lives.
    """
    ignore_in_worker()
    above = os.getppid()  # `parent`, or a fork server that ends with it
    if above == 1 != parent:  # an orphan already
        os._exit(1)
    threading.Thread(target=_end_with, args=(above,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def ignore_in_worker(*_: object) -> None:
    """Ignore the STOPPING signals in a worker process: they reach the whole group, and the parent stops the worker.

    Nothing changes in the main process, in which joblib runs the work of a single worker, nor outside the main thread.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if multiprocessing.parent_process() is not None and in_main_thread:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
