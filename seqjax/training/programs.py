"""The compiled programs of a training: for one trial, and for several side by side.

Both have the same methods, so that the trainer does not know which one it has: `DataParallel`
divides each batch of its one trial over the devices, `TrialParallel` divides its trials. The trials
of a program have a seed each and may differ in some numbers (`OPTIMIZER_FIELDS`, `LOSS_FIELDS`),
which are arrays of the program; everything else is one config.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.data.batching import Rows, count_rows, eval_batches
from seqjax.distributed.mesh import SPLIT, WHOLE, shard, sharded
from seqjax.errors import UserError
from seqjax.hparams import LARGEST_INT, HParams, parse_spec
from seqjax.metrics import compute_means
from seqjax.nn.dropout import row_keys
from seqjax.tasks.base import Task
from seqjax.training.epoch import LOOPS, LoopOptions, Place, Program, make_steps
from seqjax.training.setup import Setup, find_mapping
from seqjax.training.train_step import RunKeys, StepLog, TrainState, make_keys
from seqjax.typing import Params

# Numbers in which the trials of one program may differ. A number that is 0 removes its part of the
# program, so it is 0 in all trials of a group or in none.
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
NUM_DEVICES = 0  # over which the trials of a program are divided; 0 = all
# Fields that are read before training only.
INITIAL_FIELDS = ("seed", *(f"model.{name}_init" for name in ("kernel", "recurrent")))
INITIAL_FIELDS += ("model.output_kernel_init", "model.output_bias_init")


def loop_options(setup: Setup) -> LoopOptions:
    """Returns the options of the loop that trains this setup."""
    train = setup.config.train
    return LoopOptions(
        max_steps=train.eval_every_epochs * setup.data.steps_per_epoch,
        num_epochs=train.num_epochs,
        max_skipped=train.max_skipped_steps,
        microbatch_size=setup.choice.microbatch_size,
        log_norms=train.log_every_steps > 0,
    )


def evaluation_key(keys: RunKeys) -> Array:
    """Returns the key of `train.dropout_at_test`, which no training step uses."""
    return jax.random.fold_in(keys.dropout, LARGEST_INT)


class DataParallel:
    """The programs of one trial; each batch is divided over the devices."""

    def __init__(self, setup: Setup):
        train = setup.config.train
        self.setup, self.num_trials, self.num_devices = setup, 1, setup.mesh.size
        self._keys = make_keys(setup.config.seed)
        make_loop = LOOPS[train.loop]
        parts = (setup.task.loss_and_metrics, setup.optimizer, setup.data, setup.mesh)
        self._loop = make_loop(*parts, loop_options(setup))

    @property
    def compile_seconds(self) -> float:
        """The time that compiling the training program took."""
        return self._loop.program.compile_seconds

    def keys(self, trial: int) -> RunKeys:
        """Returns the keys of a trial."""
        return self._keys

    def hparams(self, trial: int) -> HParams:
        """Returns the loss's numbers in which a trial differs from the shared config."""
        return HParams()

    def put(self, trees: Sequence[Any]) -> Any:
        """Returns the arrays of all trials, on the devices."""
        [tree] = trees
        return self.to_devices(tree)

    def get(self, tree: Any, trial: int) -> Any:
        """Returns the arrays of one trial, on the host."""
        return jax.device_get(tree)

    def to_save(self, tree: Any) -> Any:
        """Returns the arrays of all trials as a checkpoint holds them."""
        return tree

    def like(self, shapes: Any) -> Any:
        """Returns the shapes of a checkpoint's arrays, given those of one trial."""
        return shapes

    def to_devices(self, tree: Any) -> Any:
        """Returns arrays that lie as in a checkpoint, on the devices."""
        return shard(tree, self.setup.mesh, WHOLE)

    def train(
        self, state: TrainState, place: Place, num_steps: int, active: Bool[np.ndarray, " N"]
    ) -> tuple[TrainState, StepLog]:
        """Starts train steps of the active trials; returns their state and their log."""
        return self._loop(state, self._keys, place, num_steps)

    def log(self, log: StepLog, num_steps: int) -> StepLog:
        """Returns the log of a call of `train` on the host, `[N, num_steps]`; waits for it."""
        return jax.tree.map(lambda x: np.asarray(x)[None, :num_steps], jax.device_get(log))

    def metrics(self, params: Params, rows: Rows, dropout: bool = False) -> list[dict[str, float]]:
        """Returns the means of each trial's metrics over all rows."""
        key = evaluation_key(self._keys) if dropout else None
        return [self.setup.evaluator.metrics(params, rows, key)]

    def numbers(self, values: Sequence[float]) -> Any:
        """Returns one number for each trial, for the optimizer's state."""
        return self.to_devices(np.float32(values[0]))

    def all_finite(self, params: Params) -> Bool[np.ndarray, " N"]:
        """Returns for each trial whether all of its parameters are finite."""
        return np.asarray(_all_finite(params))[None]

    def choose(self, better: Bool[np.ndarray, " N"], new: Params, old: Params) -> Params:
        """Returns the new parameters of the trials that are better and the old ones of the others.

        They are copies: the training program overwrites the state's own arrays.
        """
        return jax.tree.map(jnp.copy, new) if better[0] else old


class TrialParallel:
    """The programs of several trials; arrays have a leading N, which the devices divide.

    N is padded to a multiple of the number of devices with untrained copies of the first trial.
    Within a device trials are vmapped or mapped one after the other, by `train.trial_mapping`. The
    setup is that of the config that the trials share; `hparams` are arrays `[N]` of the loss's
    numbers in which they differ.
    """

    num_devices = 1  # of a batch

    def __init__(self, setup: Setup, seeds: Sequence[int], hparams: HParams):
        self.setup, self.mesh, self.num_trials = setup, setup.mesh, len(seeds)
        self._seeds = seeds
        self._filling = np.array([*range(len(seeds)), *[0] * (-len(seeds) % self.mesh.size)])
        self._all_hparams, self._hparams = hparams, self.to_devices(hparams)
        self._rows = shard(dict(setup.data.rows), self.mesh, WHOLE)
        self._keys = jax.vmap(make_keys)(np.array(seeds, np.uint32)[self._filling])
        self._keys = shard(self._keys, self.mesh, SPLIT)
        on_each = {"map": _map_trials, "vmap": jax.vmap}[find_mapping(setup.config.train)]
        parts = (setup.task.loss_and_metrics, setup.optimizer, setup.data, 1, None)
        steps = make_steps(*parts, loop_options(setup))

        def train(states, rows, keys, place, num_steps, hparams):
            def train_one(state, keys, num_steps, hparams):
                return steps(state, rows, keys, place, num_steps, hparams)

            return on_each(train_one)(states, keys, num_steps, hparams)

        def measure(params, batch, keys, hparams, first_row):
            def measure_one(params, key, hparams):
                keys = None if key is None else row_keys(key, count_rows(batch), first_row)
                return dict(setup.task.loss_and_metrics(params, batch, keys, hparams=hparams))

            return on_each(measure_one)(params, keys, hparams)

        specs = (SPLIT, WHOLE, SPLIT, WHOLE, SPLIT, SPLIT)
        self._train = Program(sharded(train, self.mesh, specs, SPLIT), self.mesh, donate_argnums=0)
        specs = (SPLIT, WHOLE, SPLIT, SPLIT, WHOLE)
        self._measure = jax.jit(sharded(measure, self.mesh, specs, SPLIT))

    @property
    def compile_seconds(self) -> float:
        """The time that compiling the training program took."""
        return self._train.compile_seconds

    def compile(self) -> int:
        """Compiles the training program; returns the bytes that it takes of each device."""
        state = self.setup.arrays_like()["state"]
        sharding = NamedSharding(self.mesh, SPLIT)

        def with_trials(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((len(self._filling), *x.shape), x.dtype, sharding=sharding)

        states, steps = jax.tree.map(with_trials, (state, np.int32(0)))
        place = Place(np.int32(0), np.int32(0))
        arguments = (states, self._rows, self._keys, place, steps, self._hparams)
        return self._train.compile(*arguments)

    def keys(self, trial: int) -> RunKeys:
        """Returns the keys of a trial."""
        return make_keys(self._seeds[trial])

    def hparams(self, trial: int) -> HParams:
        """Returns the loss's numbers in which a trial differs from the shared config."""
        return jax.tree.map(lambda x: x[trial], self._all_hparams)

    def put(self, trees: Sequence[Any]) -> Any:
        """Returns the arrays of all trials, on the devices."""
        return self.to_devices(jax.tree.map(lambda *xs: np.stack(xs), *trees))

    def get(self, tree: Any, trial: int) -> Any:
        """Returns the arrays of one trial, on the host."""
        return jax.tree.map(lambda x: np.asarray(x)[trial], tree)

    def to_save(self, tree: Any) -> Any:
        """Returns the arrays of all trials as a checkpoint holds them."""
        return jax.tree.map(lambda x: np.asarray(x)[: self.num_trials], tree)

    def like(self, shapes: Any) -> Any:
        """Returns the shapes of a checkpoint's arrays, given those of one trial."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.num_trials, *x.shape), x.dtype), shapes
        )

    def to_devices(self, tree: Any) -> Any:
        """Returns arrays that lie as in a checkpoint, on the devices."""
        return shard(jax.tree.map(lambda x: x[self._filling], tree), self.mesh, SPLIT)

    def train(
        self, state: TrainState, place: Place, num_steps: int, active: Bool[np.ndarray, " N"]
    ) -> tuple[TrainState, StepLog]:
        """Starts train steps of the active trials; returns their state and their log."""
        steps = np.zeros(len(self._filling), np.int32)
        steps[: self.num_trials] = num_steps * active
        now, steps = Place(*map(np.int32, place)), shard(steps, self.mesh, SPLIT)
        return self._train(state, self._rows, self._keys, now, steps, self._hparams)

    def log(self, log: StepLog, num_steps: int) -> StepLog:
        """Returns the log of a call of `train` on the host, `[N, num_steps]`; waits for it."""
        host = jax.device_get(log)
        return jax.tree.map(lambda x: x[: self.num_trials, :num_steps], host)

    def metrics(self, params: Params, rows: Rows, dropout: bool = False) -> list[dict[str, float]]:
        """Returns the means of each trial's metrics over all rows."""
        keys = jax.vmap(evaluation_key)(self._keys) if dropout else None
        parts = []
        for i, (batch, _) in enumerate(eval_batches(rows, self.setup.evaluator.batch_size, 1)):
            first_row = jnp.int32(i * count_rows(batch))
            batch = shard(batch, self.mesh, WHOLE)
            parts.append(self._measure(params, batch, keys, self._hparams, first_row))
        sums = jax.tree.map(lambda *xs: np.stack(xs, 1), *jax.device_get(parts))
        trials = range(self.num_trials)
        return [compute_means(jax.tree.map(lambda x, i=i: x[i], sums)) for i in trials]

    def numbers(self, values: Sequence[float]) -> Any:
        """Returns one number for each trial, for the optimizer's state."""
        return self.to_devices(np.array(values, np.float32))

    def all_finite(self, params: Params) -> Bool[np.ndarray, " N"]:
        """Returns for each trial whether all of its parameters are finite."""
        return np.asarray(jax.vmap(_all_finite)(params))[: self.num_trials]

    def choose(self, better: Bool[np.ndarray, " N"], new: Params, old: Params) -> Params:
        """Returns the new parameters of the trials that are better and the old ones of the others.

        They are copies: the training program overwrites the state's own arrays.
        """
        return _choose(self.to_devices(better), new, old)


Programs = DataParallel | TrialParallel


def _map_trials(function: Any) -> Any:
    return lambda *trials: jax.lax.map(lambda own: function(*own), trials)


@jax.jit
def _all_finite(params: Params) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


@jax.jit
def _choose(better: Bool[Array, " N"], new: Params, old: Params) -> Params:
    def choose_one(better, new, old):
        return jax.tree.map(partial(jnp.where, better), new, old)

    return jax.vmap(choose_one)(better, new, old)


def group_key(config: ConfigDict) -> str:
    """Returns the common part of the configs of one program, as text."""
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


def shared_config(configs: Sequence[ConfigDict]) -> ConfigDict:
    """Returns the config from which the task and the program of trials are made.

    It is the first one's, but all devices are divided among several trials, and where they are
    vmapped `auto` chooses a backend that allows it. A single trial takes all devices if there are
    fewer than its config asks for, since any worker may train it.
    """
    shared, several = configs[0].copy_and_resolve_references(), len(configs) > 1
    with shared.unlocked():
        if several or shared.train.num_devices > jax.device_count():
            shared.train.num_devices = NUM_DEVICES or jax.device_count()
        if several and find_mapping(shared.train) == "vmap" and shared.train.backend == "auto":
            shared.train.backend = "xla"
    return shared.lock()


def differing_hparams(configs: Sequence[ConfigDict]) -> HParams:
    """Returns arrays `[N]` of the loss's numbers in which configs of one group key differ."""
    hparams = HParams({}, {})
    for name in LOSS_FIELDS:
        section, field = _place(configs[0], name)
        if field in section:
            values = [_place(config, name)[0][field] for config in configs]
            if any(value != values[0] for value in values):
                getattr(hparams, name.split(".")[0])[field] = _as_arrays(values)
    return hparams


def _as_arrays(values: Sequence[Any]) -> Any:
    """Returns numbers as a float32 array [N], equally long tuples as a tuple of such arrays."""
    if isinstance(values[0], tuple):
        return tuple(_as_arrays(column) for column in zip(*values, strict=True))
    return np.array(values, np.float32)


def _pattern(value: Any) -> Any:
    """Returns which of the numbers are 0."""
    return [_pattern(v) for v in value] if isinstance(value, list) else value == 0


def _place(fields: Any, name: str) -> tuple[Any, str]:
    """Returns the section of a field `a.b`, or an empty one, and the field's own name."""
    *path, field = name.split(".")
    for part in path:
        fields = fields.get(part, {})
    return fields, field


def check_hparams(task: Task, name: str, hparams: HParams) -> None:
    """Raises UserError for numbers that the loss of the task of this name does not read."""
    differ = {f"{section}.{field}" for section, own in hparams._asdict().items() for field in own}
    if unread := sorted(differ - set(task.hparams)):
        raise UserError(
            f"trials that differ in {unread[0]} cannot share a program: the task {name} does not "
            "read it from `hparams`, see Task.hparams"
        )
