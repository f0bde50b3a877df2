"""Signals that a process can be sent while it trains."""

import os
import signal
import time

import pytest

from seqjax.runs.signals import SIGNALS, StopSignals, say


@pytest.fixture(autouse=True)
def hangup():
    """The tests may run under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


def receive(number: int) -> int | None:
    """Sends this process a signal while something is unsaved; returns the signal that it noted."""
    with StopSignals() as signals:
        signals.unsaved = True
        os.kill(os.getpid(), number)
        end = time.monotonic() + (0.2 if signal.getsignal(number) == signal.SIG_IGN else 60)
        while signals.received is None and time.monotonic() < end:
            time.sleep(0.01)
        return signals.received


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_while_something_is_unsaved(number, capfd):
    assert receive(number) == number
    expected = f"{number.name}: saving, then exiting; once more exits at once\n"
    assert capfd.readouterr().err == expected
    assert {number.name for number in SIGNALS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"}


def test_a_process_under_nohup_does_not_notice_that_its_terminal_is_closed():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert receive(signal.SIGHUP) is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_line_that_nobody_can_read_is_not_an_error(monkeypatch):
    def fail(*args):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "write", fail)
    say("the terminal is closed")
