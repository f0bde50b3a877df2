"""Talks to a trained run of text pairs.

python -m experiments.chat --workdir=runs/cafe
python -m experiments.chat --workdir=runs/cafe --abstain=off --decoder=beam < questions.txt
"""

import os
import sys
from io import TextIOWrapper
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.errors import UserError
from seqjax.serving.load import load_responder
from seqjax.serving.repl import CHAT_DECODERS, Chat, piped_lines, prompted_lines, talk

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory", required=True)
ABSTAIN = flags.DEFINE_enum("abstain", "on", ["on", "off"], "off: answer however unsure")
DECODER = flags.DEFINE_enum("decoder", "greedy", CHAT_DECODERS, "how replies are found at first")


def main() -> None:
    if sys.stdin is None:
        raise UserError("standard input is closed: type questions, or pipe them in")
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # no text that a terminal knows not ends a chat
    terminal = sys.stdin.isatty()
    try:
        responder = load_responder(Path(WORKDIR.value), ABSTAIN.value == "on")
        chat = Chat(responder, DECODER.value, on_terminal=terminal)
        lines = prompted_lines(input, sys.stdout) if terminal else piped_lines(sys.stdin.buffer)
        talk(chat, lines, sys.stdout)
    except BrokenPipeError:  # nobody reads any more, as after `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(launch(main))
