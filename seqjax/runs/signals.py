"""Signals while a run trains: save, then exit; at once where nothing would be lost.

SIGTERM and SIGINT ask a process to end, SIGHUP tells it that its terminal is gone, and SIGUSR1 is
sent by Slurm before a job's time is over, if the job asks for it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from seqjax.errors import one_line

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows has two of them
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(SystemExit):
    """A run that was asked to stop, has saved and ends; its code is what a shell expects."""

    def __init__(self, number: int, message: str):
        self.exit_code, self.message = 128 + number, message
        super().__init__(self.exit_code)


class StopSignals:
    """A context in which the first signal is noted in `received` and the second ends the process.

    While `unsaved` is false there is nothing to wait for, and the first one does, after calling
    `leaving`. A thread of its own sees them, because Python's handlers wait until a compilation has
    ended. Outside of the main thread signals are left as they are.
    """

    def __init__(self, leaving: Callable[[], object] = lambda: None) -> None:
        self.received: int | None = None
        self.unsaved = False
        self._leaving = leaving

    def __enter__(self) -> "StopSignals":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._ears, mouth = os.pipe()
            os.set_blocking(mouth, False)
            self._old_mouth, self._mouth = signal.set_wakeup_fd(mouth), mouth
            heard = [number for number in SIGNALS if not _is_for_nohup(number)]
            self._old = {number: signal.signal(number, _ignore) for number in heard}
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            for number, handler in self._old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_mouth)
            os.close(self._mouth)  # the thread reads the end of the pipe, and ends

    def _listen(self) -> None:
        with os.fdopen(self._ears, "rb", buffering=0) as ears:
            while byte := ears.read(1):
                if byte[0] in SIGNALS:
                    self._hear(byte[0])

    def _hear(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.received is None and self.unsaved:
            self.received = number
            say(f"{name}: saving, then exiting; once more exits at once")
            return
        with contextlib.suppress(OSError, AttributeError):  # without a terminal, or without stdout
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # the progress bar had hidden the cursor
        lost = "what was not saved is lost" if self.unsaved else "nothing is lost"
        say(f"{name}: {lost}; the same command resumes from the last checkpoint")
        self._leaving()
        os._exit(128 + number)


def say(line: str) -> None:
    """Writes a line to standard error at once, from any thread, unless nobody can read it."""
    with contextlib.suppress(OSError):  # the terminal may have been closed
        os.write(2, f"{one_line(line)}\n".encode())


def _is_for_nohup(number: int) -> bool:
    """Returns whether `nohup` has made the process ignore that its terminal is closed."""
    is_hangup = number == getattr(signal, "SIGHUP", None)
    return is_hangup and signal.getsignal(number) == signal.SIG_IGN


def _ignore(number: int, frame: object) -> None:
    """With a handler of Python's, even this one, the number is written to the pipe."""
