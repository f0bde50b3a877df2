"""The peers: one file a family, loaded only in the process of a worker.

Each has `build(workload, weights, batches) -> Peer`. Weights come as `inputs.make_weights` makes
them, and every peer copies them into its own places. Training is Adam, rate 1e-3, in float32.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from experiments.benchmark.workloads import NOTHING

LEARNING_RATE = 1e-3
OURS = "seqjax"  # and OURS:BACKEND
RATES = "rates"


class Peer(NamedTuple):
    """A model that holds the given weights and has made one step."""

    first: Any  # the loss before any update, of the first batch; or the tokens [B, T]
    run: Callable[[int], None]  # makes so many steps, and waits for them
    reserved_mib: float | None = None  # memory beside arguments and results, where XLA tells it


class Source(NamedTuple):
    """Where a peer comes from."""

    module: str  # under experiments.benchmark.peers
    packages: tuple[str, ...]  # that it needs; their versions are reported
    environment: Mapping[str, str] = NOTHING  # to be set before they are imported
    options: Mapping[str, Any] = NOTHING  # of `build`


def _keras(backend: str) -> Source:
    return Source("keras", ("keras", backend), {"KERAS_BACKEND": backend})


def _flax(api: str) -> Source:
    return Source("flax", ("jax", "flax"), options={"api": api})


def _backend(name: str, remat: bool = False) -> Source:
    return Source("backends", ("jax",), options={"backend": name, "remat": remat})


PEERS: dict[str, Source] = {
    OURS: Source("ours", ("jax", "flax")),
    "keras:tensorflow": _keras("tensorflow"),
    "keras:jax": _keras("jax"),
    "keras:torch": _keras("torch"),
    "torch": Source("torch", ("torch",)),
    "flax:nnx": _flax("nnx"),
    "flax:linen": _flax("linen"),
    "seqjax:scan": _backend("scan"),
    "seqjax:fused": _backend("fused"),
    "seqjax:remat": _backend("fused", remat=True),
    "seqjax:cudnn": _backend("cudnn"),
}
# Not peers, but measured like them.
SOURCES = PEERS | {RATES: Source("rates", ("jax",))}


def missing_packages(peer: str) -> list[str]:
    """Returns the packages of a peer that are not installed; nothing is imported."""
    return [package for package in PEERS[peer].packages if find_spec(package) is None]
