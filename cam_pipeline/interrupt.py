"""Ctrl-C and SIGTERM: the first asks for a stop at the next safe point, the second stops at once."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cam_pipeline.errors import Interrupted

_received: list[int] = []


def stop_requested() -> bool:
    """True after the first Ctrl-C or SIGTERM inside `graceful_stop`."""
    return bool(_received)


def raise_if_stopped() -> None:
    """Leave a loop at a point where nothing is half done. Raises Interrupted after the first signal."""
    if _received:
        raise Interrupted(f"stopped by {signal.Signals(_received[0]).name}; finished work is saved")


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
            signal.signal(number, handler)
        _received.clear()


def ignore_in_worker(*_: object) -> None:
    """Let a worker process leave Ctrl-C and SIGTERM, which reach the whole group, to the parent that stops it.

    Nothing changes in the main process, where joblib runs the work of a single worker, nor outside the main thread.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if multiprocessing.parent_process() is not None and in_main_thread:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
