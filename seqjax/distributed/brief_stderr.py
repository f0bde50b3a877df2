"""A program that copies standard input to standard output, line by line.

When JAX's runtime loses contact with another process it writes many lines and aborts. From the
first of those lines on, the program prints nothing but one line, its argument; if an error has been
printed already, it omits that line too. It imports nothing from seqjax.
"""

import signal
import sys

# Texts that only the runtime's lines about a lost process contain.
LOST_MARKS = (b"coordination_service", b"JAX distributed service detected fatal errors")


def copy_lines(message: str) -> None:
    """Copies the lines until a process is lost, then prints `message` as an error."""
    # It must end when the process that writes to it ends, and not before.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    has_error = is_lost = False
    for line in sys.stdin.buffer:
        if not is_lost and any(mark in line for mark in LOST_MARKS):
            is_lost = True
            line = b"" if has_error else f"error: {message}\n".encode()
        elif is_lost:
            continue
        has_error = has_error or line.startswith(b"error: ")
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    copy_lines(sys.argv[1])
