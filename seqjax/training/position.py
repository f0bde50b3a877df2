"""The position of a training run: what its next step needs, the results so far, and how both are
stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

from seqjax.data.batching import count_rows
from seqjax.metrics import Average, compute_means
from seqjax.runs.checkpoint import Checkpoint
from seqjax.training.early_stopping import Progress, derive_progress
from seqjax.training.epoch import Place
from seqjax.training.programs import Programs
from seqjax.training.setup import Setup, count_updates, setup_optimizer
from seqjax.training.train_step import StepLog, TrainState, init_train_state
from seqjax.typing import Params

FORMAT = 2  # of a checkpoint's facts; version 0.1 wrote none


@dataclass
class TrialPosition:
    """What was found of one trial."""

    progress: Progress = field(default_factory=Progress)
    patient_from: int = 0  # the epoch from which a run that had stopped early was given more epochs
    records: list[dict[str, Any]] = field(default_factory=list)  # one an epoch
    failure: str = ""  # why the trial cannot go on


@dataclass
class Position:
    """The position of N trials of one program; those still in training are at the same step."""

    state: TrainState  # like `best_params` on the devices, in the program's layout
    best_params: Params
    trials: list[TrialPosition]
    epoch: int = 0  # the number of epochs that were completed
    place: int = 0  # the number of steps made in the epoch after them
    step: int = 0  # the number of steps
    evaluated: int = 0  # the epoch of the last evaluation
    log: StepLog | None = None  # `[N, place]`, on the host
    seconds: float = 0.0  # of training so far
    compile_seconds: float = 0.0  # of these, for compiling the training program

    def best_step(self) -> int:
        """Returns the step of the best evaluation of a single trial, otherwise the last step."""
        best_epoch = self.trials[0].progress.best_epoch
        if len(self.trials) > 1 or not best_epoch:
            return self.step
        return self.trials[0].records[best_epoch - 1]["step"]


def begin(program: Programs, params: Sequence[Params], optimizers: Sequence[Any]) -> Position:
    """Returns the position before the first step, from the initial weights of each trial."""
    states = [init_train_state(*own) for own in zip(params, optimizers, strict=True)]
    # The loop overwrites the arrays of the state, so the best parameters are arrays of their own.
    best_params = program.put(jax.tree.map(np.array, params))
    return Position(program.put(states), best_params, [TrialPosition() for _ in params])


def with_schedule(setup: Setup, found: Checkpoint) -> Setup:
    """Returns the setup with the schedule of a run that goes on from a checkpoint.

    With the same batches and epochs it is as long as before. Otherwise its length is the number of
    updates already made plus those still to come.
    """
    facts, num_updates = found.facts, found.facts["num_updates"]
    if facts["schedule"] != _schedule_of(setup):
        opt_state = found.arrays["state"].opt_state
        made = int(np.max(setup.optimizer.num_updates(opt_state)))
        waiting = int(np.max(opt_state.window.num_batches)) if opt_state.window else 0
        place = _place_in(setup, facts)
        num_updates = made + count_updates(setup.config, setup.data, place, waiting)
    optimizer = setup_optimizer(setup.config, setup.data, num_updates)
    return setup._replace(optimizer=optimizer, num_updates=num_updates)


def resume(program: Programs, first: Position, found: Checkpoint) -> Position:
    """Returns the position of a checkpoint under the present config and data.

    The numbers of the optimizer are those of `first`, the position before the first step; early
    stopping and the plateau follow from the records. If its batches have changed, the interrupted
    epoch begins again.
    """
    facts, setup = found.facts, program.setup
    arrays = {name: program.to_devices(tree) for name, tree in found.arrays.items()}
    numbers = optax.tree_utils.tree_get(first.state.opt_state, "hyperparams")
    opt_state = optax.tree_utils.tree_set(arrays["state"].opt_state, hyperparams=numbers)
    place = _place_in(setup, facts)
    now = Position(
        state=arrays["state"]._replace(opt_state=opt_state),
        best_params=arrays["best_params"],
        trials=[
            _trial_from(own, facts["evaluated"], facts["schedule"]["num_epochs"], setup)
            for own in facts["trials"]
        ],
        epoch=place.epoch,
        place=place.step,
        step=found.step,
        evaluated=facts["evaluated"],
        log=log_from_json(facts["log"]) if place.step else None,
        seconds=facts["seconds"],
        compile_seconds=facts["compile_seconds"],
    )
    now.state = with_plateau(program, now)
    return now


def with_plateau(program: Programs, now: Position) -> TrainState:
    """Returns the state with the learning rates that the schedule `plateau` has after the last
    evaluation; it follows from the records."""
    optimizer, state = program.setup.optimizer, now.state
    if optimizer.plateau is None:
        return state
    split, _, metric = optimizer.plateau.monitor.partition(".")
    factors = []
    for trial in now.trials:
        seen = [record.get(split, {}) for record in trial.records[: now.evaluated]]
        factors.append(optimizer.plateau.scale([x[metric] for x in seen if metric in x]))
    opt_state = optimizer.with_factor(state.opt_state, program.numbers(factors))
    return state._replace(opt_state=opt_state)


def begins_again(setup: Setup, found: Checkpoint) -> bool:
    """Returns whether the checkpoint lies in an epoch whose batches have changed."""
    return found.facts["place"] > 0 and found.facts["batches"] != _batches_of(setup)


def _place_in(setup: Setup, facts: Mapping[str, Any]) -> Place:
    same = facts["batches"] == _batches_of(setup)
    return Place(facts["epoch"], facts["place"] if same else 0)


def _batches_of(setup: Setup) -> dict[str, Any]:
    """Returns what decides which rows are the batches of an epoch."""
    data = setup.data
    return {
        "seed": setup.config.seed,
        "num_rows": count_rows(data.rows),
        "batch_size": data.batch_size,
        "drop_remainder": data.drop_remainder,
        "buckets": [len(rows) for rows in data.buckets.rows] if data.buckets else [],
    }


def _schedule_of(setup: Setup) -> dict[str, Any]:
    """Returns what decides the number of updates of a whole run."""
    return {
        "steps_per_epoch": setup.data.steps_per_epoch,
        "num_epochs": setup.config.train.num_epochs,
        "accumulate_steps": setup.config.optim.accumulate_steps,
    }


def _trial_from(
    facts: Mapping[str, Any], evaluated: int, num_epochs: int, setup: Setup
) -> TrialPosition:
    """Returns the position of a trial.

    A trial that stopped early gets its full patience back if the run now has more than
    `num_epochs`.
    """
    records, best_epoch = facts["records"], facts["best_epoch"]
    epoch = min(evaluated, len(records))  # a trial that has stopped has fewer
    train, patient_from = setup.config.train, facts["patient_from"]
    progress = derive_progress(records, best_epoch, epoch, train, patient_from)
    if progress.stopped and train.num_epochs > num_epochs:
        patient_from = epoch
        progress = derive_progress(records, best_epoch, epoch, train, patient_from)
    return TrialPosition(progress, patient_from, records, facts["failure"])


def to_facts(now: Position, setup: Setup) -> dict[str, Any]:
    """Returns the JSON object that a checkpoint holds beside the arrays, for `resume`."""
    return {
        "format": FORMAT,
        "epoch": now.epoch,
        "place": now.place,
        "evaluated": now.evaluated,
        "num_updates": setup.num_updates,
        "batches": _batches_of(setup),
        "schedule": _schedule_of(setup),
        "seconds": now.seconds,
        "compile_seconds": now.compile_seconds,
        "trials": [
            {
                "best_epoch": trial.progress.best_epoch,
                "patient_from": trial.patient_from,
                "records": trial.records,
                "failure": trial.failure,
            }
            for trial in now.trials
        ],
        "log": log_to_json(now.log) if now.log else None,
    }


def epoch_record(log: StepLog, epoch: int, step: int) -> dict[str, Any] | None:
    """Returns the record of an epoch that ends at a step, from the log of its steps.

    Returns None if every step was skipped.
    """
    made = log.skipped == 0
    if not made.any():
        return None
    means = {n: Average(x.total[made], x.weight[made]) for n, x in log.metrics.items()}
    record = {
        "epoch": epoch,
        "step": step,
        "learning_rate": float(log.learning_rate[-1]),
        "train": compute_means(means),
    }
    return record if made.all() else record | {"skipped_steps": int((~made).sum())}


def step_line(log: StepLog, epoch: int, step: int) -> dict[str, Any]:
    """Returns the line of steps.jsonl of one step, from its log."""
    return {
        "step": step,
        "epoch": epoch,
        "learning_rate": float(log.learning_rate),
        **compute_means(log.metrics),
        **{name: float(norm) for name, norm in log.norms.items()},
    }


def log_to_json(log: StepLog) -> dict[str, Any]:
    """Returns a log without norms as nested dicts of lists."""
    metrics = {name: average._asdict() for name, average in log.metrics.items()}
    return jax.tree.map(np.ndarray.tolist, log._asdict() | {"metrics": metrics})


def log_from_json(value: dict[str, Any]) -> StepLog:
    """Returns the log that `log_to_json` was given; JSON's null is NaN."""

    def as_array(values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)  # a float32 is the same number as a float64

    arrays: Any = jax.tree.map(as_array, value, is_leaf=lambda x: isinstance(x, list))
    metrics = {name: Average(**parts) for name, parts in arrays["metrics"].items()}
    return StepLog(**arrays | {"metrics": metrics})
