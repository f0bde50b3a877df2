"""The machine's own rates, measured as peers are: a matrix product, and a pass over memory."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.peers import Peer
from experiments.benchmark.workloads import MEMORY_PASSES, Workload


def build(workload: Workload, weights: Any, batches: Any) -> Peer:
    """Returns a peer whose step is one product, or passes `a = 0.5 a + b` over memory."""
    size = workload.hidden_size
    if workload.kind == "matmul":
        step = jax.jit(jnp.matmul)
        arrays = [jnp.ones((size, size), jnp.float32)] * 2
    else:
        step = jax.jit(_pass_over_memory)
        arrays = [jnp.ones(size, jnp.float32)] * 2

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            found = step(*arrays)
        jax.block_until_ready(found)

    run(1)
    return Peer(0.0, run)


def _pass_over_memory(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, MEMORY_PASSES, lambda _, a: 0.5 * a + b, a)
