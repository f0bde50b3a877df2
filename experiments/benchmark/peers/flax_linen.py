"""Flax linen: `nn.RNN` over its optimized cells, a jitted train step that donates its state."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from experiments.benchmark.inputs import IDS, cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload

_CELLS = {"simple_rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


class _Classifier(nn.Module):
    """Logits of the last step's output."""

    workload: Workload

    @nn.compact
    def __call__(self, batch):
        w = self.workload
        xs = batch["inputs"]
        for i in range(w.num_layers):
            rnn: Any = nn.RNN(_CELLS[w.cell](w.hidden_size, name=f"layer_{i}"))
            xs = rnn(xs)
        return nn.Dense(w.num_classes, name="output")(xs[:, -1])


class _Seq2Seq(nn.Module):
    """Logits at every step of a decoder that starts from the encoder's state."""

    workload: Workload

    def setup(self):
        w = self.workload
        self.source_embed = nn.Embed(w.num_classes, w.input_size)
        self.target_embed = nn.Embed(w.num_classes, w.input_size)
        self.encoder, self.decoder = (_CELLS[w.cell](w.hidden_size) for _ in range(2))
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


@partial(jax.jit, donate_argnums=0)
def _train_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
    """The state after one update, and the loss before it."""

    def loss_of(params):
        logits = state.apply_fn({"params": params}, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


@partial(jax.jit, static_argnums=(0, 3))
def _generate(model: _Seq2Seq, params: Any, source: jax.Array, length: int) -> jax.Array:
    """The most probable tokens, one by one, in one compiled loop."""
    variables = {"params": params}

    def step(carry, _):
        state, token = model.apply(variables, *carry, method="decode_step")
        return (state, token), token

    start = jnp.full(len(source), IDS.bos_id)
    state = model.apply(variables, source, method="encode")
    return jax.lax.scan(step, (state, start), length=length)[1].T


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    """The peer after its first step."""
    data = jax.device_put(batches)
    params = jax.tree.map(jnp.array, _params_of(workload, weights))
    if workload.kind == "decode":
        return _decoder(_Seq2Seq(workload), params, data, workload.target_length)
    model = _Classifier(workload) if workload.kind == "classifier" else _Seq2Seq(workload)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(LEARNING_RATE))
    state, loss = _train_step(state, data[0])

    def run(num_steps: int) -> None:
        nonlocal state
        for _ in range(num_steps):
            for batch in data:
                state, _ = _train_step(state, batch)
        jax.block_until_ready(state)

    return Peer(float(loss), run)


def _decoder(model: _Seq2Seq, params: Any, data: Any, length: int) -> Peer:
    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in data:
                _generate(model, params, batch["source"], length).block_until_ready()

    return Peer(np.asarray(_generate(model, params, data[0]["source"], length)), run)


def _params_of(workload: Workload, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our weights under its names: a small array for each gate."""
    params: dict[str, Any] = {
        "output": {"kernel": weights["output.kernel"], "bias": weights["output.bias"]}
    }
    names = [f"layer_{i}" for i in range(workload.num_layers)]
    if workload.kind != "classifier":
        names = ["encoder", "decoder"]
        params |= {x: {"embedding": weights[x]} for x in ("source_embed", "target_embed")}
    for name in names:
        params[name] = _CELL_PARAMS[workload.cell](cell_weights(weights, name))
    return params


def _simple_rnn(cell: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"i": {"kernel": cell["w_x"], "bias": cell["b"]}, "h": {"kernel": cell["w_h"]}}


def _lstm(cell: dict[str, np.ndarray]) -> dict[str, Any]:
    w_x, w_h, b = (_split_gates("ifgo", cell[x]) for x in ("w_x", "w_h", "b"))
    inputs = {f"i{gate}": {"kernel": w_x[gate]} for gate in "ifgo"}
    return inputs | {f"h{gate}": {"kernel": w_h[gate], "bias": b[gate]} for gate in "ifgo"}


def _gru(cell: dict[str, np.ndarray]) -> dict[str, Any]:
    """Only `hn` has a bias of its own; those of the other two gates are added to the inputs'."""
    w_x, w_h, b_x, b_h = (_split_gates("rzn", cell[x]) for x in ("w_x", "w_h", "b_x", "b_h"))
    params: dict[str, Any] = {f"h{gate}": {"kernel": w_h[gate]} for gate in "rzn"}
    params["hn"]["bias"] = b_h["n"]
    biases = {"r": b_x["r"] + b_h["r"], "z": b_x["z"] + b_h["z"], "n": b_x["n"]}
    return params | {f"i{gate}": {"kernel": w_x[gate], "bias": biases[gate]} for gate in "rzn"}


def _split_gates(names: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, np.split(array, len(names), axis=-1), strict=True))


_CELL_PARAMS = {"simple_rnn": _simple_rnn, "lstm": _lstm, "gru": _gru}
