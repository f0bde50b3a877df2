"""Flax as its guides write it: linen (`nn.RNN`, `TrainState`) and NNX (`nnx.RNN`, `nnx.Optimizer`).

The one file where NNX's transforms may be used: elsewhere NNX only holds parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from experiments.benchmark.inputs import IDS, cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload

Arrays = dict[str, np.ndarray]
_LINEN_CELLS = {"simple_rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
_NNX_CELLS = {"simple_rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


def build(workload: Workload, weights: Arrays, batches: list[Arrays], api: str) -> Peer:
    """Returns the peer after its first step; `api` is linen or nnx."""
    data = jax.device_put(batches)
    # From a batch to the loss before an update, or to tokens.
    step: Callable[[Any], jax.Array] = _STEPS[api](workload, weights)
    first = np.asarray(step(data[0]))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                last = step(batch)
                if workload.kind == "decode":
                    last.block_until_ready()
        last.block_until_ready()

    return Peer(first if workload.kind == "decode" else float(first), run)


def _mean_loss(logits: jax.Array, batch: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()


def _most_probable(decode_step: Callable, state: Any, num_rows: int, length: int) -> jax.Array:
    """Returns the most probable tokens `[B, T]`, one by one, in one compiled loop."""

    def step(carry, _):
        state, token = decode_step(*carry)
        return (state, token), token

    start = jnp.full(num_rows, IDS.bos_id)
    return jax.lax.scan(step, (state, start), length=length)[1].T


class _LinenClassifier(nn.Module):
    """Logits of the last step's output."""

    workload: Workload

    @nn.compact
    def __call__(self, batch):
        w = self.workload
        xs = batch["inputs"]
        for i in range(w.num_layers):
            rnn: Any = nn.RNN(_LINEN_CELLS[w.cell](w.hidden_size, name=f"layer_{i}"))
            xs = rnn(xs)
        return nn.Dense(w.num_classes, name="output")(xs[:, -1])


class _LinenSeq2Seq(nn.Module):
    """Logits at every step of a decoder that starts from the encoder's state."""

    workload: Workload

    def setup(self):
        w = self.workload
        self.source_embed = nn.Embed(w.num_classes, w.input_size)
        self.target_embed = nn.Embed(w.num_classes, w.input_size)
        self.encoder, self.decoder = (_LINEN_CELLS[w.cell](w.hidden_size) for _ in range(2))
        self.read, self.write = nn.RNN(self.encoder, return_carry=True), nn.RNN(self.decoder)
        self.output = nn.Dense(w.num_classes)

    def __call__(self, batch):
        inputs = self.target_embed(batch["inputs"])
        state = self.encode(batch["source"])
        return self.output(self.write(inputs, initial_carry=state))

    def encode(self, source):
        return self.read(self.source_embed(source))[0]

    def decode_step(self, state, token):
        state, outputs = self.decoder(state, self.target_embed(token))
        return state, jnp.argmax(self.output(outputs), axis=-1)


def _linen_step(workload: Workload, weights: Arrays) -> Callable[[Any], jax.Array]:
    """Returns a step whose state is donated to the next one."""
    model = (_LinenClassifier if workload.kind == "classifier" else _LinenSeq2Seq)(workload)
    params = jax.tree.map(jnp.array, _linen_params(workload, weights))
    if workload.kind == "decode":

        @jax.jit
        def generate(params: Any, source: jax.Array) -> jax.Array:
            apply = partial(model.apply, {"params": params})
            state = apply(source, method="encode")
            decode_step = partial(apply, method="decode_step")
            return _most_probable(decode_step, state, len(source), workload.target_length)

        return lambda batch: generate(params, batch["source"])

    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(LEARNING_RATE))

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        def loss_of(params):
            return _mean_loss(state.apply_fn({"params": params}, batch), batch)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=grads), loss

    def step(batch: Any) -> jax.Array:
        nonlocal state
        state, loss = train_step(state, batch)
        return loss

    return step


def _linen_params(workload: Workload, weights: Arrays) -> dict[str, Any]:
    """Returns our weights under its names: a small array for each gate."""
    params: dict[str, Any] = {
        "output": {"kernel": weights["output.kernel"], "bias": weights["output.bias"]}
    }
    names = [f"layer_{i}" for i in range(workload.num_layers)]
    if workload.kind != "classifier":
        names = ["encoder", "decoder"]
        params |= {x: {"embedding": weights[x]} for x in ("source_embed", "target_embed")}
    for name in names:
        params[name] = _LINEN_PARAMS[workload.cell](cell_weights(weights, name))
    return params


def _simple_rnn(cell: Arrays) -> dict[str, Any]:
    return {"i": {"kernel": cell["w_x"], "bias": cell["b"]}, "h": {"kernel": cell["w_h"]}}


def _lstm(cell: Arrays) -> dict[str, Any]:
    w_x, w_h, b = (_split_gates("ifgo", cell[x]) for x in ("w_x", "w_h", "b"))
    inputs = {f"i{gate}": {"kernel": w_x[gate]} for gate in "ifgo"}
    return inputs | {f"h{gate}": {"kernel": w_h[gate], "bias": b[gate]} for gate in "ifgo"}


def _gru(cell: Arrays) -> dict[str, Any]:
    """Only `hn` has a bias of its own; those of the other two gates are added to the inputs'."""
    w_x, w_h, b_x, b_h = (_split_gates("rzn", cell[x]) for x in ("w_x", "w_h", "b_x", "b_h"))
    params: dict[str, Any] = {f"h{gate}": {"kernel": w_h[gate]} for gate in "rzn"}
    params["hn"]["bias"] = b_h["n"]
    biases = {"r": b_x["r"] + b_h["r"], "z": b_x["z"] + b_h["z"], "n": b_x["n"]}
    return params | {f"i{gate}": {"kernel": w_x[gate], "bias": biases[gate]} for gate in "rzn"}


def _split_gates(names: str, array: np.ndarray) -> Arrays:
    return dict(zip(names, np.split(array, len(names), axis=-1), strict=True))


_LINEN_PARAMS = {"simple_rnn": _simple_rnn, "lstm": _lstm, "gru": _gru}


class _NNXClassifier(nnx.Module):
    """Logits of the last step's output."""

    def __init__(self, workload: Workload, weights: Arrays):
        w = workload
        self.layers = nnx.List(
            nnx.RNN(_nnx_cell(w, weights, f"layer_{i}", w.hidden_size if i else w.input_size))
            for i in range(w.num_layers)
        )
        self.output = _nnx_output(w, weights)

    def __call__(self, batch):
        xs = batch["inputs"]
        for layer in self.layers:
            xs = layer(xs)
        return self.output(xs[:, -1])


class _NNXSeq2Seq(nnx.Module):
    """Logits at every step of a decoder that starts from the encoder's state."""

    def __init__(self, workload: Workload, weights: Arrays):
        w = workload
        self.source_embed, self.target_embed = (
            _nnx_embed(w, weights[f"{side}_embed"]) for side in ("source", "target")
        )
        encoder, decoder = (
            _nnx_cell(w, weights, side, w.input_size) for side in ("encoder", "decoder")
        )
        self.encoder, self.decoder = nnx.RNN(encoder, return_carry=True), nnx.RNN(decoder)
        self.output = _nnx_output(w, weights)

    def __call__(self, batch):
        inputs = self.target_embed(batch["inputs"])
        return self.output(self.decoder(inputs, initial_carry=self.encode(batch["source"])))

    def encode(self, source):
        return self.encoder(self.source_embed(source))[0]

    def decode_step(self, state, token):
        state, outputs = self.decoder.cell(state, self.target_embed(token))
        return state, jnp.argmax(self.output(outputs), axis=-1)


@nnx.jit
def _nnx_train_step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Any) -> jax.Array:
    """Returns the loss before the update, which happens in place."""
    loss, grads = nnx.value_and_grad(lambda model: _mean_loss(model(batch), batch))(model)
    optimizer.update(model, grads)
    return loss


@partial(nnx.jit, static_argnums=2)
def _nnx_generate(model: _NNXSeq2Seq, source: jax.Array, length: int) -> jax.Array:
    return _most_probable(model.decode_step, model.encode(source), len(source), length)


def _nnx_step(workload: Workload, weights: Arrays) -> Callable[[Any], jax.Array]:
    if workload.kind == "decode":
        seq2seq = _NNXSeq2Seq(workload, weights)
        return lambda batch: _nnx_generate(seq2seq, batch["source"], workload.target_length)
    kind = _NNXClassifier if workload.kind == "classifier" else _NNXSeq2Seq
    model = kind(workload, weights)
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    return lambda batch: _nnx_train_step(model, optimizer, batch)


def _nnx_cell(workload: Workload, weights: Arrays, name: str, input_size: int) -> Any:
    """Returns a cell with our weights: its gates stand in our orders."""
    cell = _NNX_CELLS[workload.cell](input_size, workload.hidden_size, rngs=nnx.Rngs(0))
    ours = cell_weights(weights, name)
    if workload.cell == "gru":
        # As it comes it has no recurrent bias, which the GRU of everybody else has.
        size = (workload.hidden_size, 3 * workload.hidden_size)
        cell.dense_h = nnx.Linear(*size, rngs=nnx.Rngs(0))
        _set(cell.dense_h, ours["w_h"], ours["b_h"])
        _set(cell.dense_i, ours["w_x"], ours["b_x"])
    elif workload.cell == "lstm":
        _set(cell.dense_i, ours["w_x"])
        _set(cell.dense_h, ours["w_h"], ours["b"])
    else:
        _set(cell.dense_i, ours["w_x"], ours["b"])
        _set(cell.dense_h, ours["w_h"])
    return cell


def _nnx_output(workload: Workload, weights: Arrays) -> nnx.Linear:
    """Returns the dense layer with our weights."""
    layer = nnx.Linear(workload.hidden_size, workload.num_classes, rngs=nnx.Rngs(0))
    _set(layer, weights["output.kernel"], weights["output.bias"])
    return layer


def _nnx_embed(workload: Workload, table: np.ndarray) -> nnx.Embed:
    """Returns the embedding with our rows."""
    embed = nnx.Embed(workload.num_classes, workload.input_size, rngs=nnx.Rngs(0))
    embed.embedding[...] = jnp.array(table)
    return embed


def _set(layer: nnx.Linear, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    layer.kernel[...] = jnp.array(kernel)
    if bias is not None and layer.bias is not None:
        layer.bias[...] = jnp.array(bias)


_STEPS = {"linen": _linen_step, "nnx": _nnx_step}
