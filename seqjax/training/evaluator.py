"""Metrics and predictions over whole splits."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from seqjax.data.batching import Rows, count_rows, eval_batches
from seqjax.distributed.mesh import AXIS, SPLIT, WHOLE, gather_shards, shard, sharded
from seqjax.metrics import Metrics, compute_means
from seqjax.nn.dropout import row_keys
from seqjax.training.train_step import LossAndMetrics
from seqjax.typing import Batch, Params


class Evaluator:
    """Runs a task's compiled `loss_and_metrics` and `predict` over the mesh, batch by batch."""

    def __init__(
        self, loss_and_metrics: LossAndMetrics, predict: Callable, batch_size: int, mesh: Mesh
    ):
        def measure_batch(
            params: Params, batch: Batch, key: Key[Array, ""] | None, first_row: Int[Array, ""]
        ) -> Metrics:
            # Each device returns its own sums: [1] here, [devices] outside. If the devices added
            # them up, several batches at once could block one another for ever on a CPU's few
            # threads.
            rows = count_rows(batch)
            first_row += jax.lax.axis_index(AXIS) * rows
            keys = None if key is None else row_keys(key, rows, first_row)
            return jax.tree.map(lambda x: x[None], dict(loss_and_metrics(params, batch, keys)))

        self.batch_size, self.mesh = batch_size, mesh
        self._measure = jax.jit(sharded(measure_batch, mesh, (WHOLE, SPLIT, WHOLE, WHOLE), SPLIT))
        self._predict = jax.jit(sharded(predict, mesh, (WHOLE, SPLIT), SPLIT))

    def metrics(
        self, params: Params, rows: Rows, key: Key[Array, ""] | None = None
    ) -> dict[str, float]:
        """Returns the means of the metrics over all rows; with a key, dropout is active."""
        parts = []
        for i, (batch, _) in enumerate(self._batches(rows)):
            first_row = jnp.int32(i * count_rows(batch))
            parts.append(self._measure(params, batch, key, first_row))
            jax.block_until_ready(parts[-2:-1])  # so that no more than two batches are in memory
        return compute_means(jax.tree.map(lambda *xs: np.stack(xs), *gather_shards(parts)))

    def predict(self, params: Params, rows: Rows) -> Any:
        """Returns the task's predictions for all rows, in order."""
        parts = []
        for batch, real in self._batches(rows):
            outputs = gather_shards(self._predict(params, batch))
            parts.append(jax.tree.map(lambda x, n=real: x[:n], outputs))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def _batches(self, rows: Rows) -> Iterator[tuple[Batch, int]]:
        for batch, real in eval_batches(rows, self.batch_size, self.mesh.size):
            yield shard(batch, self.mesh, SPLIT), real
