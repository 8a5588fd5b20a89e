"""What is shown of a loop, and where: a bar on a terminal, now and then a line elsewhere, nothing when quiet."""

import logging
from collections.abc import Iterator

import pytest

from cam_pipeline.machine import progress
from cam_pipeline.machine.progress import Tracker, set_quiet, track


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No terminal, whatever the tests run in, and not quiet."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO, "cam_pipeline")
    set_quiet(False)
    yield
    set_quiet(False)


def started(tracker: Tracker, seconds_ago: float) -> Tracker:
    tracker._started -= seconds_ago
    return tracker


def test_line_tells_count_rate_time_left_and_note() -> None:
    tracker = started(Tracker("train_cls", total=20, unit="steps"), seconds_ago=50)
    tracker.advance(5, note="loss 0.123")
    assert tracker.line() == "train_cls: 5/20 steps, 10.0 s/step, 150 s left, loss 0.123"


def test_work_of_an_earlier_run_does_not_count_for_the_rate() -> None:
    with track("train_cls", total=1000, unit="steps", done=900) as tracker:
        started(tracker, seconds_ago=10)
        tracker.advance(50)
        assert tracker.line() == "train_cls: 950/1000 steps, 5.0 steps/s, 10 s left"


def test_nothing_done_yet_makes_no_promise() -> None:
    assert Tracker("x", total=3, unit="images").line() == "x: 0/3 images, 0.0 images/s, time left unknown"


def test_nothing_to_do_at_all_is_no_error() -> None:
    with track("x", total=0) as tracker:
        assert tracker.line().startswith("x: 0/0 images")


def test_note_stays_until_the_next() -> None:
    tracker = Tracker("x", total=3, unit="images")
    tracker.advance(note="loss 1")
    tracker.advance()
    assert tracker.note == "loss 1"


def test_lines_come_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    with track("x", total=9) as tracker:
        for _ in range(3):
            tracker.advance()
        assert caplog.messages == []
        tracker._shown -= progress.SECONDS_BETWEEN_LINES
        for _ in range(3):
            tracker.advance()
    assert [message.split(",")[0] for message in caplog.messages] == ["x: 4/9 images"]


def test_quiet_shows_nothing(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    with track("x", total=2) as tracker:
        tracker._shown -= progress.SECONDS_BETWEEN_LINES
        tracker.advance()
    assert (caplog.messages, *capsys.readouterr()) == ([], "", "")


def test_terminal_gets_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with track("extract_cams", total=4, done=1) as tracker:
        tracker.advance(2, note="halfway there")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(words in shown.err for words in ("extract_cams", "3/4", "halfway there"))


def test_quiet_shows_no_bar_either(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    set_quiet(True)
    with track("x", total=2) as tracker:
        tracker.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_errors_pass_through(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(ValueError, match="broken image"), track("x", total=2):
        raise ValueError("broken image")
