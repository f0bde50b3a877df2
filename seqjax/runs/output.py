"""Standard output of a run: if it can no longer be written, the run continues without it."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator
from typing import Any

from seqjax.runs.signals import say


class _Output:
    """A text stream that is discarded after its first error, which is told once."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unless_it_fails(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._unless_it_fails(self._stream.flush)

    def _unless_it_fails(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:  # a closed pipe or terminal, or a full disk
            reason = error.strerror or error
            say(f"standard output cannot be written ({reason}): the run goes on without it")
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as sink:
                os.dup2(sink.fileno(), self._stream.fileno())  # unless it is not a file


@contextlib.contextmanager
def expendable_output() -> Generator[None]:
    """A context in which a standard output that cannot be written ends nothing."""
    if sys.stdout is None:  # the parent process has closed it
        yield
        return
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        yield
