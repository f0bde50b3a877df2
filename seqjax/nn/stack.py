"""Layers on top of each other, with dropout between them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seqjax.errors import UserError, unknown_name
from seqjax.nn.cells import make_cell
from seqjax.nn.dropout import Rate, dropout, fold_keys
from seqjax.nn.layers import Bidirectional, Layer, Recurrent, time_major
from seqjax.typing import Features, Lengths, Mask, RowKeys

MAX_SIZE = 10**6  # whose weights have more numbers than a shape can count
MAX_LAYERS = 100  # each is compiled by itself
Rates = float | tuple[Any, ...]  # a dropout rate for all layers, or one for each
DROPOUTS = ("input_dropout", "output_dropout", "state_dropout")


class StackRun(NamedTuple):
    """What one run of a stack gives, batch-major. What is not used costs nothing under jit."""

    sequence: Float[Array, "B T O"]
    last: Float[Array, "B O"]  # the output at the last valid step
    states: tuple[tuple[Any, ...], ...]  # for each layer one state a direction


class Stack(nnx.Module):
    """Layers, of any cells and sizes, with dropout on the input, output or state of each.

    A rate is a float, or a tuple of one for all layers or one for each. Input and output dropout
    draw a fresh mask at every step (TF1's DropoutWrapper); state dropout keeps one mask for the
    sequence (Gal and Ghahramani, 2016; Keras' `recurrent_dropout`). `reads` says what the model
    uses of the top layer, "output" or "state": dropout that nothing would read is refused. `part`
    is how a config calls the stack in `encoder_output_dropout`: "encoder_".
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        input_dropout: Rates = 0.0,
        output_dropout: Rates = 0.0,
        state_dropout: Rates = 0.0,
        reads: str = "output",
        part: str = "",
    ):
        if not layers:
            raise UserError("a stack needs at least one layer: raise model.num_layers to 1")
        if any(getattr(layer, "merge", "") == "none" for layer in layers):
            raise UserError("a stack cannot hold Bidirectional(merge='none'): it has two outputs")
        self.num_layers, self.output_size = len(layers), layers[-1].output_size
        for i, layer in enumerate(layers):
            setattr(self, f"layer_{i}", layer)
        self.input_dropout = _rates("input_dropout", input_dropout, len(layers))
        self.output_dropout = _rates(f"{part}output_dropout", output_dropout, len(layers))
        self.state_dropout = _rates("state_dropout", state_dropout, len(layers))
        if reads == "state" and self.output_dropout[-1]:
            raise UserError(
                f"{part}output_dropout of the last layer is never read, only its state is: "
                "set it to 0 or use state_dropout"
            )

    def initial_states(self, batch_size: int, dtype: Any) -> tuple[tuple[Any, ...], ...]:
        """States of zeros, for each layer one a direction."""
        layers = [getattr(self, f"layer_{i}") for i in range(self.num_layers)]
        return tuple(layer.initial_states(batch_size, dtype) for layer in layers)

    def __call__(
        self,
        xs: Features,
        *,
        initial_states: Sequence[tuple[Any, ...]] | None = None,
        mask: Mask | None = None,
        lengths: Lengths | None = None,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> StackRun:
        """Runs the layers; without `keys` nothing is dropped.

        `rates` replaces the constructor's dropout rates by the options' names. Its values are as in
        the constructor, and may be arrays: then one compiled program serves several rates. A rate
        that is 0 in the constructor stays 0.
        """
        input_rates, output_rates, state_rates = self._rates_of_call(rates or {})
        ys, time_mask = time_major(xs, mask, lengths)
        if initial_states is None:
            initial_states = self.initial_states(xs.shape[0], xs.dtype)
        last, ends = jnp.zeros(0), []
        for i in range(self.num_layers):
            layer = getattr(self, f"layer_{i}")
            of_input, of_output, of_last, of_state = (fold_keys(keys, 4 * i + j) for j in range(4))
            ys = dropout(of_input, ys, input_rates[i], axis=1)
            run = layer.run(ys, time_mask, initial_states[i], of_state, state_rates[i])
            ys = dropout(of_output, run.sequence, output_rates[i], axis=1)
            last = dropout(of_last, run.last, output_rates[i])
            ends.append(run.states)
            if time_mask is not None and getattr(layer, "go_backwards", False):
                time_mask = time_mask[::-1]  # its outputs come reversed, and the padding with them
        return StackRun(jnp.swapaxes(ys, 0, 1), last, tuple(ends))

    def _rates_of_call(self, rates: Mapping[str, Any]) -> list[tuple[Rate, ...]]:
        """The rates of every layer in one call, in the order of `DROPOUTS`."""
        check_names(rates, DROPOUTS)
        used = []
        for name in DROPOUTS:
            built = getattr(self, name)
            values = _per_layer(name, rates.get(name, built), self.num_layers)
            used.append(tuple(new if old else 0.0 for old, new in zip(built, values, strict=True)))
        return used


def make_stack(
    *,
    input_size: int,
    cell: str,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool,
    kernel_init: str,
    recurrent_init: str,
    input_dropout: Rates,
    output_dropout: Rates,
    state_dropout: Rates,
    rngs: nnx.Rngs,
    backend: str = "auto",
    remat: bool = False,
    reads: str = "output",
    part: str = "",
) -> Stack:
    """The stack of equal layers that a config's `model` section describes."""
    if num_layers > MAX_LAYERS:
        raise UserError(f"model.num_layers={num_layers} must be at most {MAX_LAYERS}")
    if hidden_size > MAX_SIZE:
        raise UserError(f"model.hidden_size={hidden_size} must be at most {MAX_SIZE}")
    made_cell = make_cell(cell, kernel_init=kernel_init, recurrent_init=recurrent_init)
    kind = Bidirectional if bidirectional else Recurrent
    layers: list[Layer] = []
    for _ in range(num_layers):
        size = layers[-1].output_size if layers else input_size
        layers.append(kind(made_cell, size, hidden_size, backend=backend, remat=remat, rngs=rngs))
    return Stack(
        layers,
        input_dropout=input_dropout,
        output_dropout=output_dropout,
        state_dropout=state_dropout,
        reads=reads,
        part=part,
    )


def check_names(rates: Iterable[str], names: Sequence[str]) -> None:
    """Raises UserError unless every rate has one of the names."""
    for name in rates:
        if name not in names:
            raise unknown_name("dropout rate", name, names)


def _per_layer(name: str, rate: Any, num_layers: int) -> tuple[Any, ...]:
    """One rate a layer; raises UserError for a wrong number of them."""
    rates = tuple(rate) if isinstance(rate, tuple | list) else (rate,)
    rates = rates * num_layers if len(rates) == 1 else rates
    if len(rates) != num_layers:
        raise UserError(f"model.{name}={rates}: {len(rates)} rates for {num_layers} layers")
    return rates


def _rates(name: str, rate: Rates, num_layers: int) -> tuple[float, ...]:
    """One rate a layer; raises UserError for a wrong number of them or one outside [0, 1)."""
    rates = _per_layer(name, rate, num_layers)
    if not all(isinstance(r, int | float) and 0.0 <= r < 1.0 for r in rates):
        raise UserError(f"model.{name}={rates}: a dropout rate lies in [0, 1)")
    return tuple(rate if isinstance(rate, float) else float(rate) for rate in rates)
