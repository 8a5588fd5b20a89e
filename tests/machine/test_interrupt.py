"""The first signal asks, the second insists; handlers come back; workers leave signals to their parent."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import termios
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cam_pipeline.errors import Interrupted
from cam_pipeline.machine.interrupt import (
    graceful_stop,
    ignore_from_now_on,
    ignore_in_worker,
    listening,
    raise_if_stopped,
    signals_as_ctrl_c,
    stop_requested,
    workers_start_deaf,
)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


def send(number: signal.Signals) -> None:
    """To this thread: another one, as pytest-xdist has, would take what is sent to the process and blocked here."""
    signal.pthread_kill(threading.get_ident(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_request(number: signal.Signals) -> None:
    with graceful_stop():
        raise_if_stopped()
        assert not stop_requested()
        send(number)
        assert stop_requested()
        with pytest.raises(Interrupted, match=number.name):
            raise_if_stopped()


def test_listeners_may_stop_the_work_without_a_signal() -> None:
    def listener() -> None:
        raise LookupError

    with pytest.raises(LookupError), graceful_stop(), listening(listener):
        assert not stop_requested()
        raise_if_stopped()
    raise_if_stopped()  # it is no longer asked
    with pytest.raises(Interrupted), graceful_stop(), listening(listener):
        send(signal.SIGTERM)
        raise_if_stopped()


def test_a_process_about_to_end_can_be_left_alone() -> None:
    """Neither the request handler nor the ones before it come back."""

    def end(answer: Connection) -> None:
        with signals_as_ctrl_c(), graceful_stop():
            ignore_from_now_on()
            send(signal.SIGTERM)
        for number in SIGNALS:
            send(number)
        answer.send("still here")

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=end, args=(sender,))
    process.start()
    assert receiver.poll(30) and receiver.recv() == "still here"
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS[:2])
def test_second_signal_stops_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), graceful_stop():
        send(first)
        send(second)
        pytest.fail("the second signal was only noted")


def test_handlers_and_state_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted), graceful_stop():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        send(signal.SIGTERM)
        raise_if_stopped()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not stop_requested()
    with graceful_stop():
        raise_if_stopped()


def test_a_signal_outside_is_not_remembered() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stop_requested()


def test_sigterm_can_act_as_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals_as_ctrl_c():
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_processes_can_be_started_deaf() -> None:
    """The mask goes to the child; this process hears what came meanwhile when the block ends."""
    with graceful_stop():
        with workers_start_deaf():
            code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
            shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
            send(signal.SIGTERM)
            assert not stop_requested()
        assert stop_requested()
    assert "SIGINT" in shown and "SIGTERM" in shown
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


def handlers_of_a_worker(answer: Connection) -> None:
    ignore_in_worker(3)
    answer.send([signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS])


def test_worker_process_ignores_them() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=handlers_of_a_worker, args=(sender,))
    worker.start()
    assert receiver.poll(30)
    assert receiver.recv() == [True] * len(SIGNALS)
    worker.join()


def test_work_done_in_the_main_process_still_hears_signals() -> None:
    """joblib runs a single worker's tasks in the main process; a stop must reach it there."""
    with graceful_stop():
        ignore_in_worker()
        send(signal.SIGINT)
        assert stop_requested()


def test_worker_thread_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's workers run tasks outside the main thread of their process, where Python refuses to set handlers."""
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            ignore_in_worker()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_ctrl_c(), graceful_stop():
            send(signal.SIGHUP)
            assert not stop_requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


AT_A_TERMINAL = """
import os, sys, time
from pathlib import Path
from cam_pipeline.errors import Interrupted
from cam_pipeline.machine.interrupt import graceful_stop, raise_if_stopped, signals_as_ctrl_c
with signals_as_ctrl_c():
    try:
        with graceful_stop():
            print("ready", flush=True)
            while True:
                raise_if_stopped()
                time.sleep(.001)
    except Interrupted:
        print("progress", flush=True)  # raises OSError if this still is the terminal
        print("more", file=sys.stderr, flush=True)
        Path(sys.argv[1]).write_text("saved")
"""


def test_work_is_saved_after_the_terminal_is_closed(tmp_path: Path) -> None:
    terminal, inner = os.openpty()
    saved = tmp_path / "saved"

    def as_first_of_session() -> None:
        os.setsid()
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", AT_A_TERMINAL, str(saved)]
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, preexec_fn=as_first_of_session)
    os.close(inner)
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the kernel sends SIGHUP
    assert process.wait(30) == 0
    assert saved.read_text() == "saved"
