"""Runs that differ only in numbers, trained side by side by one compiled program.

The members of a group have a seed each and may have numbers of their own (`TRACED_FIELDS`); all
else is one config. Devices share the members out and each takes its own one after the other, as the
single run on one device would: no member's numbers depend on the others.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.data.batching import Rows, eval_batches, num_rows
from seqjax.distributed.mesh import SPLIT, WHOLE, shard, sharded
from seqjax.hparams import Traced, TracedSpec, given, parse_spec
from seqjax.metrics import Metrics, summarize
from seqjax.nn.dropout import row_keys
from seqjax.training.epoch import compiler_options, make_steps
from seqjax.training.optimizer import make_optimizer
from seqjax.training.setup import Setup
from seqjax.training.train_step import StepLog, TrainState
from seqjax.typing import Batch, Params

# Numbers that the training program may take as arguments. Where one is 0 a part of it is missing.
TRACED_FIELDS = (
    "optim.learning_rate",
    "optim.clip_norm",
    "optim.clip_value",
    "optim.ema_decay",
    "loss.label_smoothing",
    "model.token_dropout",
    "model.input_dropout",
    "model.state_dropout",
    "model.output_dropout",
    "model.encoder_output_dropout",
    "model.decoder_output_dropout",
)
COPIES = 3  # of the weights, outside the program: the best ones, those evaluated, the new best
TRACED_OPTION = "weight_decay"  # of optim.name
# What is read before training only.
INITIAL_FIELDS = ("seed", *(f"model.{name}_init" for name in ("kernel", "recurrent")))
INITIAL_FIELDS += ("model.output_kernel_init", "model.output_bias_init")


def group_key(config: ConfigDict) -> str:
    """What all members of a group have in common, as text."""
    fields = as_json(config)
    for name in INITIAL_FIELDS:
        section, field = _place(fields, name)
        section.pop(field, None)
    for name in TRACED_FIELDS:
        section, field = _place(fields, name)
        if field in section:
            section[field] = _pattern(section[field])
    name, args, options = parse_spec(config.optim.name, "optimizer")
    if TRACED_OPTION in options:
        options[TRACED_OPTION] = _pattern(options[TRACED_OPTION])
    fields["optim"]["name"] = [name, args, options]
    return json.dumps(fields, sort_keys=True, default=repr)  # of specs' own values


class Shared(NamedTuple):
    """The config of a group, in which numbers that differ stand as `Traced`."""

    config: ConfigDict
    optim: dict[str, Any]  # its section, with a spec that no ConfigDict can hold
    traced: list[tuple[Traced, Float[np.ndarray, " N"]]]  # those numbers, and the members' own


def share_config(configs: Sequence[ConfigDict]) -> Shared:
    """What configs of one group key have in common."""
    traced: list[Any] = []
    shared = configs[0].copy_and_resolve_references()
    with shared.unlocked():
        shared.train.num_devices = 1  # of what a member does alone; members share all there are
        for name in TRACED_FIELDS:
            section, field = _place(shared, name)
            if field in section:
                values = [_place(config, name)[0][field] for config in configs]
                section[field] = _trace(values, traced)
    options = [parse_spec(config.optim.name)[2] for config in configs]
    if TRACED_OPTION in options[0]:
        own = {TRACED_OPTION: _trace([given[TRACED_OPTION] for given in options], traced)}
        optim = {**shared.optim, "name": TracedSpec(shared.optim.name, own)}
    else:
        optim = {**shared.optim}
    return Shared(shared.lock(), optim, traced)


def _trace(values: list[Any], traced: list[tuple[Traced, Any]]) -> Any:
    """The value that all share, or what stands for theirs."""
    if isinstance(values[0], tuple):
        return tuple(_trace(list(own), traced) for own in zip(*values, strict=True))
    if all(value == values[0] for value in values):
        return values[0]
    traced.append((Traced(values[0]), np.array(values, np.float32)))
    return traced[-1][0]


def _pattern(value: Any) -> Any:
    """Which of the numbers are 0."""
    return [_pattern(v) for v in value] if isinstance(value, list) else value == 0


def _place(fields: Any, name: str) -> tuple[Any, str]:
    """The section of a field `a.b`, or nothing where the config has none, and its own name."""
    *path, field = name.split(".")
    for part in path:
        fields = fields.get(part, {})
    return fields, field


class Members:
    """The compiled programs of a group; states, parameters and keys have a leading N.

    N is a multiple of the mesh's devices. The setup is that of the shared config.
    """

    def __init__(self, setup: Setup, shared: Shared, mesh: Mesh):
        self.setup, self.mesh, self._optim = setup, mesh, shared.optim
        self._traced = [number for number, _ in shared.traced]
        self._numbers = [shard(values, mesh, SPLIT) for _, values in shared.traced]
        self.max_steps = setup.config.train.eval_every_epochs * setup.data.steps_per_epoch
        self._rows = shard(dict(setup.data.rows), mesh, WHOLE)
        self._measure = jax.jit(
            sharded(self._own_metrics, mesh, (SPLIT, WHOLE, SPLIT, SPLIT, WHOLE), SPLIT)
        )

    def compile(self, state: TrainState, size: int) -> int:
        """Makes ready to train so many members, each with such a state; how many bytes that will
        take of each device, with the best weights and their copies."""
        specs = (SPLIT, WHOLE, SPLIT, SPLIT, SPLIT)
        program = jax.jit(
            sharded(self._own_steps, self.mesh, specs, SPLIT),
            donate_argnums=0,
            compiler_options=compiler_options(self.mesh),
        )
        sharding = NamedSharding(self.mesh, SPLIT)

        def of_all(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=sharding)

        states, keys, steps = jax.tree.map(of_all, (state, jax.random.key(0), np.int32(0)))
        arguments = (states, self._rows, keys, steps, self._numbers)
        self._train = program.lower(*arguments).compile()
        memory: Any = self._train.memory_analysis()  # of one device
        weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
        best = COPIES * weights * size // self.mesh.size
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes + best

    def train(
        self, states: TrainState, keys: Key[Array, " N"], num_steps: Int[np.ndarray, " N"]
    ) -> tuple[TrainState, StepLog]:
        """The states after so many more steps of each, and the logs [N, max_steps]."""
        steps = shard(num_steps.astype(np.int32), self.mesh, SPLIT)
        return self._train(states, self._rows, keys, steps, self._numbers)

    def metrics(
        self, params: Params, rows: Rows, keys: Key[Array, " N"] | None = None
    ) -> list[dict[str, float]]:
        """Each member's means over all rows; keys leave dropout alive."""
        parts = []
        for i, (batch, _) in enumerate(eval_batches(rows, self.setup.evaluator.batch_size, 1)):
            first_row = jnp.int32(i * num_rows(batch))
            batch = shard(batch, self.mesh, WHOLE)
            parts.append(self._measure(params, batch, keys, self._numbers, first_row))
        sums = jax.tree.map(lambda *xs: np.stack(xs, 1), *jax.device_get(parts))
        members = range(num_rows({"": jax.tree.leaves(params)[0]}))
        return [summarize(jax.tree.map(lambda x, n=n: x[n], sums)) for n in members]

    def _own_steps(self, states, rows, keys, num_steps, numbers):
        """Of the members of a device."""
        config, data = self.setup.config, self.setup.data

        def one(member):
            state, key, steps_left, own = member
            with given(zip(self._traced, own, strict=True)):
                optimizer = make_optimizer(
                    **self._optim,
                    steps_per_epoch=data.steps_per_epoch,
                    num_epochs=config.train.num_epochs,
                )
                steps = make_steps(
                    self.setup.task.loss_and_metrics,
                    optimizer,
                    data,
                    1,
                    None,
                    max_steps=self.max_steps,
                    max_skipped=config.train.max_skipped_steps,
                    microbatch_size=self.setup.microbatch_size,
                )
                return steps(state, rows, key, steps_left)

        return jax.lax.map(one, (states, keys, num_steps, numbers))

    def _own_metrics(self, params, batch: Batch, keys, numbers, first_row) -> Metrics:
        def one(member):
            params, key, own = member
            of_rows = None if key is None else row_keys(key, num_rows(batch), first_row)
            with given(zip(self._traced, own, strict=True)):
                return dict(self.setup.task.loss_and_metrics(params, batch, of_rows))

        return jax.lax.map(one, (params, keys, numbers))


@jax.jit
def choose(better: Bool[Array, " N"], new: Params, old: Params) -> Params:
    """The new parameters of the members that are better, the old ones of the others."""
    return jax.tree.map(
        lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
    )


@jax.jit
def all_finite(params: Params) -> Bool[Array, " N"]:
    """Which of the members have nothing but numbers."""
    leaves = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(params)]
    return jnp.stack(leaves).all(axis=0)


def stack(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Trees of the same shapes as one with a leading N, shared out to the devices."""
    return shard(jax.tree.map(lambda *xs: np.stack(xs), *trees), mesh, SPLIT)
