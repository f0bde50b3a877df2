"""What is measured: a table of workloads as plain numbers. Imports nothing of seqjax.

A workload travels to the process of a peer as JSON, so it holds no arrays; `inputs` makes those.
"""

from typing import NamedTuple

NUM_GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
TRAINED_PASSES = 3  # forward once, backward twice: towards the inputs and towards the weights


class Workload(NamedTuple):
    """One thing to do as often as possible; doing it once is a step.

    - `classifier`: a training step; the last output of the top layer through a dense layer.
    - `seq2seq`: a training step; an encoder's final state starts a decoder, a dense layer at every
      step, all labels count.
    - `corpus`: one epoch of the same over the shipped cafe corpus, every text padded to the length.
    - `decode`: the same model's most probable tokens, one by one, without an early stop.
    """

    name: str
    kind: str
    cell: str
    num_layers: int
    hidden_size: int
    num_rows: int  # that a step reads
    batch_size: int
    source_length: int  # time steps that are read
    target_length: int  # that are written; 0 without a decoder
    input_size: int  # features of a time step; of a token, its embedding's
    num_classes: int  # or words

    @property
    def num_batches(self) -> int:
        """Batches in a step; the last one is filled up."""
        return -(-self.num_rows // self.batch_size)


def _rows(name: str, cell: str) -> Workload:
    """MNIST as the configs read it: 28 rows of 28 pixels."""
    return Workload(name, "classifier", cell, 1, 128, 512, 512, 28, 0, 28, 10)


def _translation(name: str, kind: str, num_rows: int, batch_size: int) -> Workload:
    """The chatbot tutorial's model: LSTM(512) to LSTM(512), 64 tokens each, 2,000 words."""
    return Workload(name, kind, "lstm", 1, 512, num_rows, batch_size, 64, 64, 128, 2000)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _rows("simple_rnn", "simple_rnn"),
        _rows("lstm", "lstm"),
        _rows("gru", "gru"),
        Workload("stacked", "classifier", "lstm", 2, 64, 10, 10, 3, 0, 26, 26),
        _translation("seq2seq", "seq2seq", 32, 32),
        _translation("cafe", "corpus", 3620, 32),
        _translation("decode_1", "decode", 1, 1),
        _translation("decode_32", "decode", 32, 32),
    )
}


def num_flops(workload: Workload) -> int:
    """Floating-point operations of a step's matrix products, two for a multiply-add.

    Pointwise work and embeddings are left out: the figure is to be set against the machine's rate
    of matrix products.
    """
    w = workload
    gates = NUM_GATES[w.cell] * w.hidden_size
    widths = [w.input_size, *[w.hidden_size] * (w.num_layers - 1)]
    per_time = sum((width + w.hidden_size) * gates for width in widths)
    num_times = w.source_length + w.target_length
    num_outputs = w.target_length or 1
    per_row = num_times * per_time + num_outputs * w.hidden_size * w.num_classes
    passes = 1 if w.kind == "decode" else TRAINED_PASSES
    return 2 * passes * w.num_batches * w.batch_size * per_row


def throughput(workload: Workload) -> tuple[int, str]:
    """What a step gets through: so many examples, or target tokens."""
    if workload.target_length:
        return workload.num_rows * workload.target_length, "tokens"
    return workload.num_rows, "examples"
