"""Flax NNX as its guides write it: `nnx.RNN`, `nnx.Optimizer` and an `nnx.jit` train step.

The one file where those may be used: elsewhere NNX only holds parameters.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmark.inputs import IDS, cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload

_CELLS = {"simple_rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


class _Classifier(nnx.Module):
    """Logits of the last step's output."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]):
        w = workload
        self.layers = nnx.List(
            nnx.RNN(_make_cell(w, weights, f"layer_{i}", w.hidden_size if i else w.input_size))
            for i in range(w.num_layers)
        )
        self.output = _make_output(w, weights)

    def __call__(self, batch):
        xs = batch["inputs"]
        for layer in self.layers:
            xs = layer(xs)
        return self.output(xs[:, -1])


class _Seq2Seq(nnx.Module):
    """Logits at every step of a decoder that starts from the encoder's state."""

    def __init__(self, workload: Workload, weights: dict[str, np.ndarray]):
        w = workload
        self.source_embed = _make_embed(w, weights["source_embed"])
        self.target_embed = _make_embed(w, weights["target_embed"])
        encoder, decoder = (
            _make_cell(w, weights, side, w.input_size) for side in ("encoder", "decoder")
        )
        self.encoder = nnx.RNN(encoder, return_carry=True)
        self.decoder = nnx.RNN(decoder)
        self.output = _make_output(w, weights)

    def __call__(self, batch):
        inputs = self.target_embed(batch["inputs"])
        return self.output(self.decoder(inputs, initial_carry=self.encode(batch["source"])))

    def encode(self, source):
        return self.encoder(self.source_embed(source))[0]

    def decode_step(self, state, token):
        state, outputs = self.decoder.cell(state, self.target_embed(token))
        return state, jnp.argmax(self.output(outputs), axis=-1)


@nnx.jit
def _train_step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Any) -> jax.Array:
    """The loss before the update, which happens in place."""

    def loss_of(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch), batch["labels"])
        return losses.mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


@partial(nnx.jit, static_argnums=2)
def _generate(model: _Seq2Seq, source: jax.Array, length: int) -> jax.Array:
    """The most probable tokens, one by one, in one compiled loop."""

    def step(carry, _):
        state, token = model.decode_step(*carry)
        return (state, token), token

    start = (model.encode(source), jnp.full(len(source), IDS.bos_id))
    return jax.lax.scan(step, start, length=length)[1].T


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    """The peer after its first step."""
    data = jax.device_put(batches)
    if workload.kind == "decode":
        return _decoder(_Seq2Seq(workload, weights), data, workload.target_length)
    kind = _Classifier if workload.kind == "classifier" else _Seq2Seq
    model = kind(workload, weights)
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    loss = float(_train_step(model, optimizer, data[0]))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                _train_step(model, optimizer, batch)
        jax.block_until_ready(nnx.state(model, nnx.Param))

    return Peer(loss, run)


def _decoder(model: _Seq2Seq, data: Any, length: int) -> Peer:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                _generate(model, batch["source"], length).block_until_ready()

    return Peer(np.asarray(_generate(model, data[0]["source"], length)), run)


def _make_cell(
    workload: Workload, weights: dict[str, np.ndarray], name: str, input_size: int
) -> Any:
    """A cell with our weights: its gates stand in our orders."""
    cell = _CELLS[workload.cell](input_size, workload.hidden_size, rngs=nnx.Rngs(0))
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


def _make_output(workload: Workload, weights: dict[str, np.ndarray]) -> nnx.Linear:
    """The dense layer with our weights."""
    layer = nnx.Linear(workload.hidden_size, workload.num_classes, rngs=nnx.Rngs(0))
    _set(layer, weights["output.kernel"], weights["output.bias"])
    return layer


def _make_embed(workload: Workload, table: np.ndarray) -> nnx.Embed:
    """The embedding with our rows."""
    embed = nnx.Embed(workload.num_classes, workload.input_size, rngs=nnx.Rngs(0))
    embed.embedding[...] = jnp.array(table)
    return embed


def _set(layer: nnx.Linear, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
    layer.kernel[...] = jnp.array(kernel)
    if bias is not None and layer.bias is not None:
        layer.bias[...] = jnp.array(bias)
