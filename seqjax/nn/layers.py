"""Layers: Flax NNX modules that hold a cell's parameters and run it over time.

NNX holds parameters and nothing else: every transform is `jax.*`, and parameters are a nested dict
outside of a module (`functional`). Layers are batch-major, `[B, T, ...]`, with Keras' argument
names in Keras' meaning. They compute in the dtype of their parameters, to which inputs of any dtype
are cast.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from seqjax.errors import UserError, unknown_name
from seqjax.nn.backends import find_unroll
from seqjax.nn.cells import Cell, make_cell
from seqjax.nn.dropout import Direction, Rate, dropout_scale, fold_keys
from seqjax.nn.initializers import make_initializer
from seqjax.nn.precision import product
from seqjax.nn.unroll import last_output, length_mask, params_dtype, unroll_bidirectional
from seqjax.typing import Features, Lengths, Mask, Params


def functional(
    make_module: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[Key[Array, ""]], Params], Callable[[Params], Any]]:
    """Returns `init(key) -> params` and `bind(params) -> module`; nothing is allocated yet."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_module(nnx.Rngs(params=0))))

    def init(key: Key[Array, ""]) -> Params:
        return nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(params=key)), nnx.Param))

    def bind(params: Params) -> Any:
        return nnx.merge(graphdef, params)

    return init, bind


def one_hot(ids: Any, num_classes: int) -> Float[Array, "..."]:
    """Returns a one-hot vector for each id, zeros for an id outside of [0, num_classes)."""
    return jax.nn.one_hot(jnp.asarray(ids, jnp.int32), num_classes)


class Dense(nnx.Linear):
    """Computes `x W + b` on the last axis; initializers are given by name."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        kernel_init: str = "glorot_uniform",
        bias_init: str = "zeros",
        compute_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.compute_dtype = compute_dtype
        kernel, bias = make_initializer(kernel_init), make_initializer(bias_init, num_axes=1)
        super().__init__(input_size, output_size, kernel_init=kernel, bias_init=bias, rngs=rngs)

    def __call__(self, inputs: Shaped[Array, "... I"], out_sharding: Any = None) -> Any:
        kernel = self.kernel[...]
        inputs = jnp.asarray(inputs, kernel.dtype)
        return product(inputs, kernel, self.compute_dtype) + self.bias[...]  # ty: ignore[not-subscriptable]


class Embed(nnx.Embed):
    """Returns one row of a `[V, E]` table for each id.

    Padding has a row too, so mask padding by its id.
    """

    def __init__(
        self, vocab_size: int, embed_size: int, *, init: str = "uniform(0.05)", rngs: nnx.Rngs
    ):
        super().__init__(vocab_size, embed_size, embedding_init=make_initializer(init), rngs=rngs)

    def __call__(self, inputs: Shaped[Array, "..."], out_sharding: Any = None) -> Any:
        inputs = jnp.asarray(inputs)
        if inputs.dtype == bool:
            inputs = inputs.astype(jnp.int32)
        return super().__call__(inputs, out_sharding=out_sharding)


class CellParams(nnx.Module):
    """The parameters of one cell, one attribute for each field."""

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        params = cell.init(rngs.params(), input_size, hidden_size)
        self.params_type = type(params)
        for name, value in params._asdict().items():
            setattr(self, name, nnx.Param(value))

    def __call__(self) -> Any:
        """Returns the parameters as the cell's own NamedTuple."""
        return self.params_type(*(getattr(self, name)[...] for name in self.params_type._fields))


class LayerRun(NamedTuple):
    """What one run of a layer returns, time-major. Outputs are pairs for merge="none"."""

    sequence: Any  # [T, B, O], the output at every step
    last: Any  # [B, O], the output at the last valid step
    states: tuple[Any, ...]  # the cell's last state; forward and backward for Bidirectional


def time_major(
    xs: Features, mask: Mask | None, lengths: Lengths | None
) -> tuple[Array, Array | None]:
    """Returns `xs` and its mask with the time axis first; the mask may be given by lengths."""
    if lengths is not None:
        if mask is not None:
            raise UserError("give either mask or lengths, not both")
        mask = length_mask(lengths, xs.shape[1])
    return jnp.swapaxes(xs, 0, 1), None if mask is None else mask.T


class RecurrentLayer(nnx.Module):
    """The base of Recurrent and Bidirectional: Keras' return flags around their own `run`.

    A call returns the output at the last valid step `[B, O]`, or with `return_sequences` the output
    at every step `[B, T, O]`; `return_state` appends the fields of the last states, as in
    `sequence, h, c = layer(x)`. A row of length 0 has no last output: its initial h takes the place
    if the cell's output is its h, as in all cells of seqjax, and zeros otherwise.
    """

    num_directions: int
    output_size: int
    # (xs [T, B, I], mask [T, B] | None, states, keys=None, state_dropout=0.0) -> LayerRun
    run: Callable[..., LayerRun]

    def __init__(
        self,
        cell: Cell | str,
        hidden_size: int,
        return_sequences: bool,
        return_state: bool,
        **backend: Any,  # options of find_unroll
    ):
        self.cell = make_cell(cell) if isinstance(cell, str) else cell
        self.unroll = find_unroll(**backend)
        self.hidden_size = hidden_size
        self.return_sequences, self.return_state = return_sequences, return_state

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the parameters, in which the layer computes."""
        return params_dtype(nnx.state(self, nnx.Param))

    def initial_states(self, batch_size: int) -> tuple[Any, ...]:
        """Returns the cell's initial states, one for each direction."""
        size = (batch_size, self.hidden_size, self.dtype)
        return tuple(self.cell.initial_state(*size) for _ in range(self.num_directions))

    def __call__(
        self,
        xs: Features,
        *,
        initial_state: Sequence[Shaped[Array, "B H"]] | None = None,
        mask: Mask | None = None,
        lengths: Lengths | None = None,
    ) -> Any:
        states = self.initial_states(xs.shape[0])
        if initial_state is not None:
            leaves, treedef = jax.tree.flatten(states)
            if len(initial_state) != len(leaves):
                raise UserError(f"initial_state has {len(initial_state)} arrays, not {len(leaves)}")
            pairs = zip(initial_state, leaves, strict=True)
            states = jax.tree.unflatten(treedef, [jnp.asarray(x, leaf.dtype) for x, leaf in pairs])
        run = self.run(*time_major(xs, mask, lengths), states)
        output = run.last
        if self.return_sequences:
            output = jax.tree.map(lambda ys: jnp.swapaxes(ys, 0, 1), run.sequence)
        return (output, *jax.tree.leaves(run.states)) if self.return_state else output

    def _last_output(self, state: Any, ys: Array, mask: Array | None, reverse: bool) -> Array:
        """Returns the last output of one direction."""
        return state.h if self.cell.output_is_h else last_output(ys, mask, reverse)


class Recurrent(RecurrentLayer):
    """One cell over time. `go_backwards` reads the sequence reversed and returns it reversed."""

    num_directions = 1

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        backend: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        flags = (return_sequences, return_state)
        super().__init__(cell, hidden_size, *flags, backend=backend, remat=remat)
        self.output_size, self.go_backwards = hidden_size, go_backwards
        self.weights = CellParams(self.cell, input_size, hidden_size, rngs=rngs)

    def run(self, xs, mask, states, keys=None, state_dropout: Rate = 0.0) -> LayerRun:
        """Runs time-major inputs; state dropout draws one mask for the whole sequence."""
        (state,) = states
        state, ys = self.unroll(
            self.cell,
            self.weights(),
            state,
            xs,
            mask=mask,
            reverse=self.go_backwards,
            state_scale=dropout_scale(keys, state.h, state_dropout),
        )
        last = self._last_output(state, ys, mask, self.go_backwards)
        return LayerRun(ys[::-1] if self.go_backwards else ys, last, (state,))


_MERGES: dict[str, Callable[[Array, Array], Any]] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "ave": lambda forward, backward: (forward + backward) / 2,
    "none": lambda forward, backward: (forward, backward),
}


class Bidirectional(RecurrentLayer):
    """A cell over time from each end, merged by concat, sum, mul, ave or none.

    Backward outputs stay at the positions of their inputs. The forward states come first.
    """

    num_directions = 2

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        *,
        merge: str = "concat",
        return_sequences: bool = False,
        return_state: bool = False,
        backend: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if merge not in _MERGES:
            raise unknown_name("merge", merge, _MERGES)
        flags = (return_sequences, return_state)
        super().__init__(cell, hidden_size, *flags, backend=backend, remat=remat)
        self.output_size = 2 * hidden_size if merge == "concat" else hidden_size
        self.merge = merge
        self.forward = CellParams(self.cell, input_size, hidden_size, rngs=rngs)
        self.backward = CellParams(self.cell, input_size, hidden_size, rngs=rngs)

    def run(self, xs, mask, states, keys=None, state_dropout: Rate = 0.0) -> LayerRun:
        """Runs time-major inputs; state dropout draws one mask for each direction."""
        scales = tuple(
            dropout_scale(fold_keys(keys, direction), state.h, state_dropout)
            for direction, state in zip(Direction, states, strict=True)
        )
        params = (self.forward(), self.backward())
        states, ys = unroll_bidirectional(
            self.cell, params, states, xs, mask=mask, state_scales=scales, run=self.unroll
        )
        last = [
            self._last_output(states[direction], ys[direction], mask, bool(direction))
            for direction in Direction
        ]
        merge = _MERGES[self.merge]
        return LayerRun(merge(*ys), merge(*last), states)
