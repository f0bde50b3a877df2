"""The peers: one file a family, loaded only in the process of a worker.

Each has `build(workload, weights, batches) -> Peer`. Weights come as `inputs.make_weights` makes
them, and every peer copies them into its own places. Training is Adam, rate 1e-3, in float32.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

LEARNING_RATE = 1e-3
OURS = "seqjax"


class Peer(NamedTuple):
    """A model that holds the given weights and has made one step."""

    first: Any  # the loss before any update, of the first batch; or the tokens [B, T]
    run: Callable[[int], None]  # makes so many steps, and waits for them


class Source(NamedTuple):
    """Where a peer comes from."""

    module: str  # under experiments.benchmark.peers
    packages: tuple[str, ...]  # that it needs; their versions are reported
    environment: tuple[tuple[str, str], ...] = ()  # to be set before they are imported


def _keras(backend: str) -> Source:
    return Source("keras", ("keras", backend), (("KERAS_BACKEND", backend),))


PEERS: dict[str, Source] = {
    OURS: Source("ours", ("jax", "flax")),
    "keras:tensorflow": _keras("tensorflow"),
    "keras:jax": _keras("jax"),
    "keras:torch": _keras("torch"),
    "torch": Source("torch", ("torch",)),
    "flax:nnx": Source("flax_nnx", ("jax", "flax")),
    "flax:linen": Source("flax_linen", ("jax", "flax")),
}


def missing_packages(peer: str) -> list[str]:
    """The packages of a peer that are not installed; nothing is imported."""
    return [package for package in PEERS[peer].packages if find_spec(package) is None]
