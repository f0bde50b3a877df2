"""Shows trained runs on a page of this machine: a tab for each that is given.

python -m experiments.demo --digits=runs/mnist_rows
python -m experiments.demo --chat=runs/cafe_chatbot --translate=runs/words --port=8000
"""

import sys
from pathlib import Path

from absl import flags

from seqjax.cli import launch
from seqjax.serving.page import make_page, serve_page

RUNS = {
    "chat": flags.DEFINE_string("chat", None, "a run of text pairs, to talk to"),
    "translate": flags.DEFINE_string("translate", None, "a run of text pairs, to translate with"),
    "digits": flags.DEFINE_string("digits", None, "a run of MNIST, to read what is drawn"),
}
PORT = flags.DEFINE_integer(
    "port", 7860, "of http://127.0.0.1", lower_bound=1, upper_bound=2**16 - 1
)


def main() -> None:
    runs = {name: Path(flag.value) for name, flag in RUNS.items() if flag.value}
    serve_page(make_page(runs), PORT.value)


if __name__ == "__main__":
    sys.exit(launch(main))
