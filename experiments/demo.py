"""Serves a web page on this machine with a tab for each given run.

python -m experiments.demo --digits=runs/mnist_rows
python -m experiments.demo --chat=runs/cafe_chatbot --translate=runs/words --port=8000
"""

import sys

from absl import flags

from seqjax.cli import launch, user_path
from seqjax.serving.page import make_page, serve_page

_RUNS = {
    "chat": flags.DEFINE_string("chat", None, "run of text pairs that answers questions"),
    "translate": flags.DEFINE_string("translate", None, "run of text pairs that translates"),
    "digits": flags.DEFINE_string("digits", None, "run of MNIST that reads drawn digits"),
}
_PORT = flags.DEFINE_integer(
    "port", 7860, "port of http://127.0.0.1", lower_bound=1, upper_bound=2**16 - 1
)


def main() -> None:
    runs = {name: user_path(flag.value) for name, flag in _RUNS.items() if flag.value}
    serve_page(make_page(runs), _PORT.value)


if __name__ == "__main__":
    sys.exit(launch(main))
