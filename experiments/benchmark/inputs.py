"""Weights and data of a workload, the same in every process.

All in NumPy: a peer's process loads nothing of JAX for them.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from experiments.benchmark.workloads import NUM_GATES, Workload
from seqjax.typing import SpecialIds

IDS = SpecialIds()
NUM_RESERVED = len(IDS)
Arrays = dict[str, np.ndarray]


def make_weights(workload: Workload) -> Arrays:
    """Weights by name, as our cells lay them out, with biases that are not zero.

    `layer_0.w_x` to `layer_N.b` of a classifier; `encoder`, `decoder`, `source_embed` and
    `target_embed` of the others; `output.kernel` and `output.bias` of all. LSTM gates stand in the
    order i, f, g, o; GRU gates r, z, n with the biases `b_x` and `b_h`.
    """
    w, rng = workload, np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def cell(name: str, input_size: int) -> Arrays:
        gates = NUM_GATES[w.cell] * w.hidden_size
        biases = ("b_x", "b_h") if w.cell == "gru" else ("b",)
        return {
            f"{name}.w_x": normal(input_size, gates, scale=input_size**-0.5),
            f"{name}.w_h": normal(w.hidden_size, gates, scale=w.hidden_size**-0.5),
            **{f"{name}.{bias}": normal(gates, scale=0.5) for bias in biases},
        }

    weights: Arrays = {}
    if w.kind == "classifier":
        for i in range(w.num_layers):
            weights |= cell(f"layer_{i}", w.hidden_size if i else w.input_size)
    else:
        for side in ("source", "target"):
            weights[f"{side}_embed"] = normal(w.num_classes, w.input_size, scale=1.0)
        weights |= cell("encoder", w.input_size) | cell("decoder", w.input_size)
    scale = 2 * w.hidden_size**-0.5
    weights["output.kernel"] = normal(w.hidden_size, w.num_classes, scale=scale)
    weights["output.bias"] = normal(w.num_classes, scale=0.1)
    if w.kind == "decode":
        # So that padding, start and end are never the most probable, and no peer needs a mask.
        weights["output.bias"][: IDS.eos_id + 1] = -30
    return weights


def cell_weights(weights: Arrays, name: str) -> Arrays:
    """The arrays of one layer, by field."""
    start = f"{name}."
    return {key.removeprefix(start): x for key, x in weights.items() if key.startswith(start)}


def make_batches(workload: Workload) -> list[Arrays]:
    """The batches of a step, all of one shape.

    A classifier's are `inputs [B, T, I]` and `labels [B]`; the others' `source [B, S]`,
    `inputs [B, T]`, which begin with the start symbol, and `labels [B, T]`; decoding has a source.
    """
    w, rng = workload, np.random.default_rng(1)
    if w.kind == "classifier":
        inputs = rng.random((w.num_rows, w.source_length, w.input_size), np.float32)
        rows = {"inputs": inputs, "labels": _ids(rng, 0, w.num_classes, (w.num_rows,))}
    else:
        rows = _corpus_rows(w) if w.kind == "corpus" else _random_rows(w, rng)
    if w.kind == "decode":
        rows = {"source": rows["source"]}
    return list(_split(rows, w.batch_size))


def _random_rows(workload: Workload, rng: np.random.Generator) -> Arrays:
    w = workload
    source = _ids(rng, NUM_RESERVED, w.num_classes, (w.num_rows, w.source_length))
    target = _ids(rng, NUM_RESERVED, w.num_classes, (w.num_rows, w.target_length + 1))
    target[:, 0] = IDS.bos_id
    return {"source": source, "inputs": target[:, :-1], "labels": target[:, 1:]}


def _corpus_rows(workload: Workload) -> Arrays:
    """The cafe corpus by words, its rarer ones unknown; sources are padded in front, as there."""
    from seqjax.data.parallel_text import read_pairs

    w = workload
    pairs = read_pairs("cafe")[: w.num_rows]
    counts = Counter(word for pair in pairs for text in pair for word in text.split())
    known = counts.most_common(w.num_classes - NUM_RESERVED)
    number = {word: i for i, (word, _) in enumerate(known, NUM_RESERVED)}
    source = np.full((len(pairs), w.source_length), IDS.pad_id, np.int32)
    target = np.full((len(pairs), w.target_length + 1), IDS.pad_id, np.int32)
    for row, (question, answer) in enumerate(pairs):
        asked, told = ([number.get(x, IDS.unk_id) for x in t.split()] for t in (question, answer))
        asked = asked[-w.source_length :]
        told = [IDS.bos_id, *told[: w.target_length - 1], IDS.eos_id]
        source[row, w.source_length - len(asked) :] = asked
        target[row, : len(told)] = told
    return {"source": source, "inputs": target[:, :-1], "labels": target[:, 1:]}


def _ids(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(low, high, shape, dtype=np.int32)


def _split(rows: Arrays, batch_size: int) -> Iterator[Arrays]:
    """Rows in order, a batch at a time; the last one begins again with the first rows."""
    total = len(next(iter(rows.values())))
    for start in range(0, total, batch_size):
        index = np.arange(start, start + batch_size) % total
        yield {key: np.ascontiguousarray(x[index]) for key, x in rows.items()}
