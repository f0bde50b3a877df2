"""One backend of seqjax at a time, on one device: an LSTM, a dense layer, a train step of Optax.

`seqjax` itself is measured as users train; this peer leaves out the loop, so that backends can be
compared with each other and with cuDNN as PyTorch calls it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.inputs import cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload
from seqjax.errors import UserError
from seqjax.nn.backends import find_unroll
from seqjax.nn.cells import LSTMParams, lstm


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
    backend: str,
    remat: bool = False,
) -> Peer:
    """Returns the peer after its first step.

    Raises UserError for a workload other than an LSTM classifier of one layer, and for a backend
    that cannot run on this machine.
    """
    if (workload.kind, workload.cell, workload.num_layers) != ("classifier", "lstm", 1):
        raise UserError("backends are measured with a classifier of one LSTM layer")
    cell, unroll = lstm(), find_unroll(backend, remat)
    optimizer = optax.adam(LEARNING_RATE)
    data = jax.device_put(batches)
    layer, output = (
        jax.tree.map(jnp.array, cell_weights(weights, name)) for name in ("layer_0", "output")
    )
    params: Any = {"layer": LSTMParams(**layer), "output": output}

    def loss_of(params: Any, batch: Any) -> jax.Array:
        state = cell.initial_state(workload.batch_size, workload.hidden_size)
        last, _ = unroll(cell, params["layer"], state, jnp.swapaxes(batch["inputs"], 0, 1))
        logits = last.h @ params["output"]["kernel"] + params["output"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    def train_step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    state = params, optimizer.init(params)
    compiled = jax.jit(train_step, donate_argnums=(0, 1)).lower(*state, data[0]).compile()
    *state, loss = compiled(*state, data[0])

    def run(num_steps: int) -> None:
        nonlocal state
        for _ in range(num_steps):
            for batch in data:
                *state, _ = compiled(*state, batch)
        jax.block_until_ready(state)

    memory: Any = compiled.memory_analysis()  # XLA may not know it
    return Peer(float(loss), run, memory.temp_size_in_bytes / 2**20 if memory else None)
