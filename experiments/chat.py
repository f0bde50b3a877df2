"""Answers questions with a trained run of text pairs.

python -m experiments.chat --workdir=runs/cafe
python -m experiments.chat --workdir=runs/cafe --abstain=off --decoder=beam < questions.txt
"""

import os
import sys
from io import TextIOWrapper

from absl import flags

from seqjax.cli import launch, user_path
from seqjax.errors import UserError
from seqjax.serving.repl import (
    CHAT_DECODERS,
    Chat,
    load_responder,
    piped_lines,
    prompted_lines,
    talk,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
_ABSTAIN = flags.DEFINE_enum("abstain", "on", ["on", "off"], "off: answer even if unsure")
_DECODER = flags.DEFINE_enum("decoder", "greedy", CHAT_DECODERS, "decoder of the first replies")


def main() -> None:
    if sys.stdin is None:
        raise UserError("standard input is closed: type questions, or pipe them in")
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # rather than end the chat
    terminal = sys.stdin.isatty()
    try:
        responder = load_responder(user_path(_WORKDIR.value), _ABSTAIN.value == "on")
        chat = Chat(responder, _DECODER.value, on_terminal=terminal)
        lines = prompted_lines(input, sys.stdout) if terminal else piped_lines(sys.stdin.buffer)
        talk(chat, lines, sys.stdout)
    except BrokenPipeError:  # the reader has gone, as after `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(launch(main))
