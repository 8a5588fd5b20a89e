"""Ctrl-C and SIGTERM: the first asks for a stop at the next safe point, the second stops at once."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from cam_pipeline.errors import Interrupted

_received: list[int] = []
_listeners: list[Callable[[], None]] = []
_deaf: list[bool] = []


def stop_requested() -> bool:
    """True after the first Ctrl-C or SIGTERM inside `graceful_stop`."""
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
    """Ignore Ctrl-C and SIGTERM until this process, which is about to end in order, is gone."""
    _deaf.append(True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _restore(number: int, handler: Any) -> None:
    if not _deaf:
        signal.signal(number, handler)


@contextmanager
def graceful_stop() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request that loops honour; the old handlers come back at exit."""

    def request(number: int, frame: FrameType | None) -> None:
        if _received:
            raise KeyboardInterrupt
        _received.append(number)

    watched = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, request) for number in watched]
    try:
        yield
    finally:
        for number, handler in zip(watched, previous, strict=True):
            _restore(number, handler)
        _received.clear()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does; `graceful_stop` inside takes precedence."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        _restore(signal.SIGTERM, previous)


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
    """Block Ctrl-C and SIGTERM for processes that start inside, even before they can call `ignore_in_worker`.

    Signals that arrive meanwhile reach this process at the end of the block.
    """
    resource_tracker.ensure_running()  # if joblib started it inside, it would unblock the signals (older Pythons)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_worker(*_: object) -> None:
    """Ignore Ctrl-C and SIGTERM in a worker process: they reach the whole group, and the parent stops the worker.

    Nothing changes in the main process, in which joblib runs the work of a single worker, nor outside the main thread.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if multiprocessing.parent_process() is not None and in_main_thread:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
