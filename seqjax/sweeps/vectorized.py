"""Runs that differ only in numbers, trained side by side by one compiled program.

The members of a group have a seed each and may have numbers of their own (`OPTIMIZER_FIELDS`,
`LOSS_FIELDS`); all
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
from jaxtyping import Array, Bool, Int, Key
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.data.batching import Rows, count_rows, eval_batches
from seqjax.distributed.mesh import SPLIT, WHOLE, shard, sharded
from seqjax.errors import UserError
from seqjax.hparams import HParams, parse_spec
from seqjax.metrics import Metrics, compute_means
from seqjax.nn.dropout import row_keys
from seqjax.training.epoch import compiler_options, make_steps
from seqjax.training.setup import Setup
from seqjax.training.train_step import StepLog, TrainState
from seqjax.typing import Batch, Params

# Numbers in which the trials of one program may differ. A part of the program is missing where one
# is 0, so all trials have it at 0 or none has.
OPTIMIZER_FIELDS = (  # in the optimizer's state
    "optim.learning_rate",
    "optim.clip_norm",
    "optim.clip_value",
    "optim.ema_decay",
)
OPTIMIZER_OPTION = "weight_decay"  # an option of the spec `optim.name`, in the state too
LOSS_FIELDS = (  # arguments of the loss
    "loss.label_smoothing",
    "model.token_dropout",
    "model.input_dropout",
    "model.state_dropout",
    "model.output_dropout",
    "model.encoder_output_dropout",
    "model.decoder_output_dropout",
)
COPIES = 3  # of the weights, outside the program: the best ones, those evaluated, the new best
# What is read before training only.
INITIAL_FIELDS = ("seed", *(f"model.{name}_init" for name in ("kernel", "recurrent")))
INITIAL_FIELDS += ("model.output_kernel_init", "model.output_bias_init")


def group_key(config: ConfigDict) -> str:
    """What all members of a group have in common, as text."""
    fields = as_json(config)
    for name in INITIAL_FIELDS:
        section, field = _place(fields, name)
        section.pop(field, None)
    for name in (*OPTIMIZER_FIELDS, *LOSS_FIELDS):
        section, field = _place(fields, name)
        if field in section:
            section[field] = _pattern(section[field])
    name, args, options = parse_spec(config.optim.name, "optimizer")
    if OPTIMIZER_OPTION in options:
        options[OPTIMIZER_OPTION] = _pattern(options[OPTIMIZER_OPTION])
    fields["optim"]["name"] = [name, args, options]
    return json.dumps(fields, sort_keys=True, default=repr)  # of specs' own values


class Shared(NamedTuple):
    """What trials of one group key share."""

    config: ConfigDict  # the first trial's, on one device
    hparams: HParams  # arrays [N] of the loss's numbers in which the trials differ


def share_config(configs: Sequence[ConfigDict]) -> Shared:
    """Returns what configs of one group key share."""
    shared = configs[0].copy_and_resolve_references()
    with shared.unlocked():
        shared.train.num_devices = 1  # as in a single run; the trials share all devices
    hparams = HParams({}, {})
    for name in LOSS_FIELDS:
        section, field = _place(shared, name)
        if field in section:
            values = [_place(config, name)[0][field] for config in configs]
            if any(value != values[0] for value in values):
                getattr(hparams, name.split(".")[0])[field] = _as_arrays(values)
    return Shared(shared.lock(), hparams)


def _as_arrays(values: Sequence[Any]) -> Any:
    """Returns numbers as a float32 array [N], equally long tuples as a tuple of such arrays."""
    if isinstance(values[0], tuple):
        return tuple(_as_arrays(column) for column in zip(*values, strict=True))
    return np.array(values, np.float32)


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
        self.setup, self.mesh = setup, mesh
        _check_task(setup, shared.hparams)
        self._hparams = shard(shared.hparams, mesh, SPLIT)
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
        arguments = (states, self._rows, keys, steps, self._hparams)
        weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
        best = COPIES * weights * size // self.mesh.size
        # Without jit nothing is compiled, and the memory is not known.
        if jax.config.jax_disable_jit:  # ty: ignore[missing-attribute]
            self._train = program
            return best
        self._train = program.lower(*arguments).compile()
        memory: Any = self._train.memory_analysis()  # of one device
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes + best

    def train(
        self, states: TrainState, keys: Key[Array, " N"], num_steps: Int[np.ndarray, " N"]
    ) -> tuple[TrainState, StepLog]:
        """The states after so many more steps of each, and the logs [N, max_steps]."""
        steps = shard(num_steps.astype(np.int32), self.mesh, SPLIT)
        return self._train(states, self._rows, keys, steps, self._hparams)

    def metrics(
        self, params: Params, rows: Rows, keys: Key[Array, " N"] | None = None
    ) -> list[dict[str, float]]:
        """Each member's means over all rows; keys leave dropout alive."""
        parts = []
        for i, (batch, _) in enumerate(eval_batches(rows, self.setup.evaluator.batch_size, 1)):
            first_row = jnp.int32(i * count_rows(batch))
            batch = shard(batch, self.mesh, WHOLE)
            parts.append(self._measure(params, batch, keys, self._hparams, first_row))
        sums = jax.tree.map(lambda *xs: np.stack(xs, 1), *jax.device_get(parts))
        members = range(count_rows({"": jax.tree.leaves(params)[0]}))
        return [compute_means(jax.tree.map(lambda x, n=n: x[n], sums)) for n in members]

    def _own_steps(self, states, rows, keys, num_steps, hparams):
        """Of the members of a device."""
        setup = self.setup
        steps = make_steps(
            setup.task.loss_and_metrics,
            setup.optimizer,
            setup.data,
            1,
            None,
            max_steps=self.max_steps,
            max_skipped=setup.config.train.max_skipped_steps,
            microbatch_size=setup.microbatch_size,
        )

        def one(member):
            state, key, steps_left, own = member
            return steps(state, rows, key, steps_left, own)

        return jax.lax.map(one, (states, keys, num_steps, hparams))

    def _own_metrics(self, params, batch: Batch, keys, hparams, first_row) -> Metrics:
        def one(member):
            params, key, own = member
            of_rows = None if key is None else row_keys(key, count_rows(batch), first_row)
            return dict(self.setup.task.loss_and_metrics(params, batch, of_rows, hparams=own))

        return jax.lax.map(one, (params, keys, hparams))


def _check_task(setup: Setup, hparams: HParams) -> None:
    """Raises UserError for numbers that the task's loss does not take as arguments."""
    differ = {f"{section}.{name}" for section, own in hparams._asdict().items() for name in own}
    if unread := sorted(differ - set(setup.task.hparams)):
        raise UserError(
            f"trials that differ in {unread[0]} cannot share a program: the task "
            f"{setup.config.task} does not read it from `hparams`, see Task.hparams"
        )


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
