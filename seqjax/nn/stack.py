"""Layers on top of each other, with dropout between them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seqjax.errors import UserError, require, unknown_name
from seqjax.nn.cells import make_cell, with_compute_dtype
from seqjax.nn.dropout import LayerStream, Rate, dropout, layer_keys
from seqjax.nn.layers import Bidirectional, Recurrent, RecurrentLayer, time_major
from seqjax.typing import Features, Lengths, Mask, RowKeys

MAX_SIZE = 10**6  # the weights of larger layers have more elements than a shape can count
MAX_LAYERS = 100  # each layer is compiled separately
Rates = float | tuple[Any, ...]  # a dropout rate for all layers, or one for each
DROPOUTS = ("input_dropout", "output_dropout", "state_dropout")


class StackRun(NamedTuple):
    """What one run of a stack returns, batch-major. Unused fields cost nothing under jit."""

    sequence: Float[Array, "B T O"]
    last: Float[Array, "B O"]  # the output at the last valid step
    states: tuple[tuple[Any, ...], ...]  # for each layer one state per direction


class Stack(nnx.Module):
    """Layers of any cells and sizes, with dropout on the input, output or state of each.

    A rate is a float, or a tuple with one float for all layers or one for each. Input and output
    dropout draw a new mask at every step, as TensorFlow 1's DropoutWrapper does; state dropout
    keeps one mask for the sequence (Gal and Ghahramani, 2016; Keras' `recurrent_dropout`).

    `reads` says what the model uses of the top layer, "output" or "state": dropout on an output
    that is not used is refused. `part` is the prefix of `output_dropout` in error messages, such as
    "encoder_" where the config calls it `encoder_output_dropout`.
    """

    def __init__(
        self,
        layers: Sequence[RecurrentLayer],
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
        self.input_dropout = _check_rates("input_dropout", input_dropout, len(layers))
        self.output_dropout = _check_rates(f"{part}output_dropout", output_dropout, len(layers))
        self.state_dropout = _check_rates("state_dropout", state_dropout, len(layers))
        if reads == "state" and self.output_dropout[-1]:
            raise UserError(
                f"{part}output_dropout of the last layer is never read, only its state is: "
                "set it to 0 or use state_dropout"
            )

    def layers(self) -> list[RecurrentLayer]:
        """Returns the layers from the bottom to the top."""
        return [getattr(self, f"layer_{i}") for i in range(self.num_layers)]

    def initial_states(self, batch_size: int) -> tuple[tuple[Any, ...], ...]:
        """Returns the cells' initial states: for each layer one per direction."""
        return tuple(layer.initial_states(batch_size) for layer in self.layers())

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

        `rates` replaces dropout rates of the constructor, by the names of its options. Values are
        as in the constructor, and may also be arrays: then one compiled program serves several
        rates. A rate that is 0 in the constructor stays 0. Raises UserError for an unknown name.
        """
        input_rates, output_rates, state_rates = self._rates_of_call(rates or {})
        ys, time_mask = time_major(xs, mask, lengths)
        if initial_states is None:
            initial_states = self.initial_states(xs.shape[0])
        last, last_states = jnp.zeros(0), []
        for i, layer in enumerate(self.layers()):
            stream = partial(layer_keys, keys, i)
            ys = jnp.asarray(ys, layer.dtype)
            ys = dropout(stream(LayerStream.INPUT), ys, input_rates[i], axis=1)
            state_keys = stream(LayerStream.STATE)
            run = layer.run(ys, time_mask, initial_states[i], state_keys, state_rates[i])
            ys = dropout(stream(LayerStream.OUTPUT), run.sequence, output_rates[i], axis=1)
            last = dropout(stream(LayerStream.LAST_OUTPUT), run.last, output_rates[i])
            last_states.append(run.states)
            if time_mask is not None and getattr(layer, "go_backwards", False):
                time_mask = time_mask[::-1]  # the layer's outputs are reversed, with their padding
        return StackRun(jnp.swapaxes(ys, 0, 1), last, tuple(last_states))

    def _rates_of_call(self, rates: Mapping[str, Any]) -> list[tuple[Rate, ...]]:
        """Returns the rates of every layer in one call, in the order of `DROPOUTS`."""
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
    compute_dtype: str = "float32",
    reads: str = "output",
    part: str = "",
) -> Stack:
    """Returns the stack of equal layers that a config's `model` section describes."""
    require("model.num_layers", num_layers, num_layers <= MAX_LAYERS, f"at most {MAX_LAYERS}")
    require("model.hidden_size", hidden_size, hidden_size <= MAX_SIZE, f"at most {MAX_SIZE}")
    made_cell = make_cell(cell, kernel_init=kernel_init, recurrent_init=recurrent_init)
    made_cell = with_compute_dtype(made_cell, compute_dtype)
    kind = Bidirectional if bidirectional else Recurrent
    layers: list[RecurrentLayer] = []
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
    """Raises UserError unless every dropout rate has one of the names."""
    for name in rates:
        if name not in names:
            raise unknown_name("dropout rate", name, names)


def _per_layer(name: str, rate: Any, num_layers: int) -> tuple[Any, ...]:
    """Returns one rate for each layer; raises UserError for a wrong number of them."""
    rates = tuple(rate) if isinstance(rate, tuple | list) else (rate,)
    rates = rates * num_layers if len(rates) == 1 else rates
    if len(rates) != num_layers:
        raise UserError(f"model.{name}={rates}: {len(rates)} rates for {num_layers} layers")
    return rates


def _check_rates(name: str, rate: Rates, num_layers: int) -> tuple[float, ...]:
    """Returns one rate for each layer; raises UserError for a rate outside of [0, 1)."""
    rates = _per_layer(name, rate, num_layers)
    if not all(isinstance(r, int | float) and 0.0 <= r < 1.0 for r in rates):
        raise UserError(f"model.{name}={rates}: a dropout rate lies in [0, 1)")
    return tuple(float(rate) for rate in rates)
