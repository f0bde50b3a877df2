"""What a cell is. The cells themselves stand in `cells`. Imports nothing of seqjax.

A cell is one time step. `project` is all the work that does not need the state, so that it can be
done for the whole sequence before the scan; `step` is the rest, in the order of `jax.lax.scan`:
`(params, state, input) -> (state, output)`. `read` is the state that the recurrent products see
where it is not `state` itself: dropout may change what is read, but not the memory that a GRU
carries over, or it would grow by 1 / (1 - rate) at every step.

A `step` is its recurrent `products`, one after the other, joined with the projection into the
pre-activations `a`, and the pointwise `gate` after them. From these three parts `fused` makes its
backward pass; a cell that gives only a `step` is run by `unroll` alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

# A kernel `[I, O]` and a bias `[O]`, or None: `affine` uses them.
Weights = tuple[Any, Any]


class Product(NamedTuple):
    """One recurrent product of a step: `affine(weights(params), read(a, h))`.

    `read` is pointwise and may look at what the products before it have made of `a`.
    """

    read: Callable  # (a, h [..., H]) -> [..., H]
    weights: Callable  # (params) -> Weights [H, P]


class Cell(NamedTuple):
    """One recurrent step as data. `state` is a NamedTuple whose first field is `h [B, H]`."""

    init: Callable  # (key, input_size, hidden_size) -> params
    initial_state: Callable  # (batch_size, hidden_size, dtype) -> state
    project: Callable  # (params, x [..., I]) -> z [..., G]
    step: Callable  # (params, state, z [B, G], read=None) -> (state, y [B, H])
    projection: Callable | None = None  # (params) -> Weights [I, G], those of `project`
    products: tuple[Product, ...] = ()
    join: Callable | None = None  # (z [..., G], *products' results so far) -> a; linear
    gate: Callable | None = None  # (a, state) -> (state, y); pointwise


def affine(weights: Weights, x: Any) -> Any:
    """`x w + b` on the last axis."""
    w, b = weights
    return x @ w if b is None else x @ w + b


def pre_activations(products, join, weights, z, h):
    """`a` of a step: the products of `h`, each with its weights, joined with `z`."""
    a, results = z, []
    for product, of_product in zip(products, weights, strict=True):
        results.append(affine(of_product, product.read(a, h)))
        a = join(z, *results)
    return a


def make_from_products(init, initial_state, projection, products, join, gate) -> Cell:
    """A cell whose step is its pointwise `gate` after its recurrent products."""

    def project(params, x):
        return affine(projection(params), x)

    def step(params, state, z, read=None):
        weights = [product.weights(params) for product in products]
        return gate(pre_activations(products, join, weights, z, (read or state).h), state)

    return Cell(init, initial_state, project, step, projection, products, join, gate)
