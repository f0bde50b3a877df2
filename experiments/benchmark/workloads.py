"""What is measured: a table of workloads as plain numbers. Imports nothing of seqjax.

A workload travels to the process of a peer as JSON, so it holds no arrays; `inputs` makes those.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NOTHING: Mapping[str, Any] = MappingProxyType({})
NUM_GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
MEMORY_PASSES = 64  # over memory in a step of `peers/rates.py`
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


def _sized(axis: str, size: int) -> Workload:
    """An LSTM classifier of `BASE`, but for one size; `split_name` takes its name apart."""
    sizes = {**BASE, axis: size}
    rows, steps, hidden = (sizes[x] for x in ("batch_size", "num_steps", "hidden_size"))
    return Workload(f"{axis}_{size}", "classifier", "lstm", 1, hidden, rows, rows, steps, 0, 28, 10)


def split_name(name: str) -> tuple[str, int]:
    """Returns the axis and the size of a workload of the suites `lengths` and `sizes`."""
    axis, _, size = name.rpartition("_")
    return axis, int(size)


class Suite(NamedTuple):
    """Workloads that are measured in one run, with the peers that take part by default."""

    workloads: tuple[Workload, ...]
    peers: tuple[str, ...]
    environment: Mapping[str, str] = NOTHING  # of all peers


BASE = {"num_steps": 64, "hidden_size": 128, "batch_size": 32}
_FRAMEWORKS = ("torch", "keras:jax", "keras:tensorflow")
_BACKENDS = ("seqjax", "seqjax:scan", "seqjax:fused", "seqjax:remat")
SUITES = {
    "tasks": Suite(
        (
            _rows("simple_rnn", "simple_rnn"),
            _rows("lstm", "lstm"),
            _rows("gru", "gru"),
            Workload("stacked", "classifier", "lstm", 2, 64, 10, 10, 3, 0, 26, 26),
            _translation("seq2seq_8", "seq2seq", 8, 8),
            _translation("seq2seq", "seq2seq", 32, 32),
            _translation("seq2seq_128", "seq2seq", 128, 128),
            _translation("cafe", "corpus", 3620, 32),
            _translation("decode_1", "decode", 1, 1),
            _translation("decode_32", "decode", 32, 32),
        ),
        ("seqjax", *_FRAMEWORKS, "keras:torch", "flax:nnx", "flax:linen"),
    ),
    "lengths": Suite(
        tuple(_sized("num_steps", size) for size in (28, 256, 1024, 4096, 16384)),
        (*_BACKENDS, *_FRAMEWORKS),
    ),
    "sizes": Suite(
        (
            *(_sized("hidden_size", size) for size in (64, 128, 256, 512, 1024, 2048)),
            *(_sized("batch_size", size) for size in (1, 8, 32, 128, 512)),
        ),
        (*_BACKENDS, *_FRAMEWORKS),
    ),
    "accelerator": Suite(
        (
            _rows("lstm", "lstm"),
            *(_sized(*x) for x in (("num_steps", 1024), ("hidden_size", 1024))),
            _sized("batch_size", 512),
        ),
        ("seqjax", "seqjax:scan", "seqjax:fused", "seqjax:cudnn", "torch"),
        # Products in float32 and not in TF32, in JAX's own kernels and in NVIDIA's; and no process
        # reserves the memory of the others.
        {
            "JAX_DEFAULT_MATMUL_PRECISION": "float32",
            "NVIDIA_TF32_OVERRIDE": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        },
    ),
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


def weight_bytes(workload: Workload) -> tuple[int, int]:
    """Returns the bytes of a workload's kernels, and those that a step must read of them.

    Each time step reads the recurrent kernel of each layer, and once more in the backward pass. The
    other kernels are read once a batch, or for every token while decoding. Embeddings, biases, the
    optimizer's arrays and all that is written are left out.
    """
    w = workload
    gates = NUM_GATES[w.cell] * w.hidden_size
    recurrent, inputs = w.hidden_size * gates, w.input_size * gates
    output = w.hidden_size * w.num_classes
    if w.target_length:  # an encoder and a decoder, of one layer each
        num_layers, num_times, others = 2, w.source_length + w.target_length, 2 * inputs + output
    else:
        num_layers, num_times = w.num_layers, w.source_length * w.num_layers
        others = inputs + (w.num_layers - 1) * recurrent + output
    if w.kind == "decode":
        read = num_times * recurrent + inputs + w.target_length * (inputs + output)
    else:
        read = w.num_batches * (2 * num_times * recurrent + others)
    return 4 * (num_layers * recurrent + others), 4 * read


def find_floor(workload: Workload, flops_rate: float, bandwidth: float) -> tuple[float, str]:
    """Returns the seconds of a step at the machine's rates, and which of the two decides.

        floor = max(num_flops / flops_rate, bytes read / bandwidth)

    The first is the time of the matrix products at the rate of one large product (`matmul`). The
    second is that of reading the kernels (`weights`), at the rate of passes over as many bytes as
    they have: kernels that fit in a cache are read at the cache's rate.
    """
    times = {
        "matmul": num_flops(workload) / flops_rate,
        "weights": weight_bytes(workload)[1] / bandwidth,
    }
    decides = max(times, key=lambda name: times[name])
    return times[decides], decides
