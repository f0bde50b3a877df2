"""A group of trials, trained together from their first epoch, or their last checkpoint, on.

The group's directory holds what resuming needs: checkpoints of all members, and what the task
fitted to the training data, which all share.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seqjax.config import as_json
from seqjax.distributed.mesh import SPLIT, make_mesh, shard
from seqjax.errors import UserError
from seqjax.files import write_json
from seqjax.parameters import device_bytes
from seqjax.runs.checkpoint import Checkpoints, newest, set_aside_after
from seqjax.runs.identity import arrays_digest
from seqjax.runs.signals import Stopped, StopSignals, say
from seqjax.runs.workdir import CHECKPOINTS, lock_workdir
from seqjax.sweeps.trial import Trial, save_failure, save_result, sound_trials, summarize
from seqjax.sweeps.vectorized import Members, all_finite, choose, share_config, stack
from seqjax.tasks.base import fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.debug_nans import diagnose, first_bad
from seqjax.training.early_stopping import Pace, Progress, advance
from seqjax.training.logger import Record
from seqjax.training.optimizer import Optimizer, make_optimizer
from seqjax.training.setup import Setup, make_setup
from seqjax.training.train_step import StepLog, TrainState, init_train_state
from seqjax.training.trainer import epoch_records, log_from_json, log_to_json
from seqjax.typing import Params


@dataclass
class GroupPosition:
    """How far the members are: what their next steps need, and what was found."""

    states: TrainState  # [N], as all arrays
    best_params: Params
    epoch: int  # the last one evaluated
    step: int
    progress: list[Progress]  # of each trial, as those below
    records: list[list[Any]]
    failures: dict[int, str]  # why, by the trial's place
    logs: list[StepLog]  # [N, steps] each, of the calls since the last evaluation


def begin(
    params: Sequence[Params], optimizers: Sequence[Optimizer], mesh: Mesh, num_trials: int
) -> GroupPosition:
    """Before the first step, with the initial weights of all members."""
    states = [init_train_state(*own) for own in zip(params, optimizers, strict=True)]
    records: list[list[Any]] = [[] for _ in range(num_trials)]
    progress = [Progress()] * num_trials
    return GroupPosition(stack(states, mesh), stack(params, mesh), 0, 0, progress, records, {}, [])


def save_position(checkpoints: Checkpoints, now: GroupPosition, identity: dict[str, Any]) -> None:
    """Writes a checkpoint, in the background: of the trials, not of what fills devices up."""
    states, best_params, logs = jax.tree.map(
        lambda x: np.asarray(x)[: len(now.progress)], (now.states, now.best_params, now.logs)
    )
    facts = identity | {
        "epoch": now.epoch,
        "progress": [progress._asdict() for progress in now.progress],
        "records": now.records,
        "failures": list(now.failures.items()),
        "logs": [log_to_json(log) for log in logs],
    }
    arrays = {"state": states, "best_params": best_params}
    checkpoints.prepare(now.step, arrays, facts, now.step)()


def load_position(
    directory: Path, first: GroupPosition, identity: dict[str, Any], mesh: Mesh
) -> GroupPosition:
    """The newest whole checkpoint's, `first` if there is none; UserError if none is whole.

    It may be of another number of devices.
    """
    num_trials, [size, *_] = len(first.progress), jax.tree.leaves(first.states)[0].shape
    own = json.loads(json.dumps(identity))

    def is_foreign(facts: dict[str, Any]) -> str:
        changed = [name for name in own if facts.get(name) != own[name]]
        return f"other {' and '.join(changed)}" if changed else ""

    arrays = {"state": first.states, "best_params": first.best_params}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_trials, *x.shape[1:]), x.dtype), arrays)
    found = newest(directory, like, is_foreign, say)
    set_aside_after(directory, found.step if found else 0)
    if found is None:
        return first
    facts, filling = found.facts, np.arange(size) % num_trials

    def fill(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[filling], tree)

    arrays = shard(fill(found.arrays), mesh, SPLIT)
    return GroupPosition(
        arrays["state"],
        arrays["best_params"],
        facts["epoch"],
        found.step,
        [Progress(**progress) for progress in facts["progress"]],
        facts["records"],
        dict(facts["failures"]),
        [fill(log_from_json(log)) for log in facts["logs"]],
    )


PROGRESS = "progress.json"  # the records so far, by trial, where a group waits to go on
SAVE_SECONDS = 60.0  # of training that a kill may cost
MEMORY_SHARE = 0.5  # of a device's, for a group

HALVES = ("first", "second")  # directories of a group that is too large
NONE_DROPPED: Mapping[Path, int] = MappingProxyType({})

Watch = Callable[[Trial, Sequence[Record]], None]  # is told of every trial after each evaluation
Dropped = Mapping[Path, int]  # after which epoch a trial is to end, by its directory


def train_group(
    trials: Sequence[Trial],
    workdir: Path,
    watch: Watch = lambda trial, records: None,
    *,
    until: int | None = None,
    dropped: Dropped = NONE_DROPPED,
    max_bytes: float | None = None,
) -> None:
    """Trains trials of one group key to their end, or goes on with them.

    With `until` only up to that epoch; trials that are `dropped` end after theirs. A group that
    would take more than `max_bytes` of a device's memory is trained in halves. A trial that fails
    ends alone. Raises UserError where the directory cannot be used, and Stopped after a signal.
    """
    if all(trial.has_ended for trial in trials):
        return
    limit = MEMORY_SHARE * device_bytes() if max_bytes is None else max_bytes
    with lock_workdir(workdir), StopSignals() as signals:
        if not (workdir / HALVES[0]).exists():
            sound = sound_trials(trials, workdir)
            if not sound:
                return
            group = Group(sound, workdir, signals, watch)
            if len(sound) == 1 or group.num_bytes <= limit:
                return group.run(until, dropped)
    half = len(trials) // 2
    for name, part in zip(HALVES, (trials[:half], trials[half:]), strict=True):
        options: Any = {"until": until, "dropped": dropped, "max_bytes": limit}
        train_group(part, workdir / name, watch, **options)


class Group:
    """Members, how far they are, and how they go on.

    Arrays have a leading N: the trials, and at the end others that fill the last device up and are
    never trained.
    """

    def __init__(
        self,
        sound: Sequence[tuple[Trial, Callable]],
        workdir: Path,
        signals: StopSignals,
        watch: Watch,
    ):
        self.trials = [trial for trial, _ in sound]
        self.workdir, self.signals, self.watch = workdir, signals, watch
        mesh = make_mesh(0)
        self.sound = [*sound, *[sound[0]] * (-len(sound) % mesh.size)]
        self.size, configs = len(self.sound), [trial.config for trial, _ in self.sound]
        self.shared = share_config(configs)
        task = make_task(self.shared.config, workdir)
        self.setup: Setup = make_setup(task, self.shared.config)
        self.files = fitted_files(self.setup.task)
        steps, epochs = self.setup.data.steps_per_epoch, self.shared.config.train.num_epochs
        lengths = {"steps_per_epoch": steps, "num_epochs": epochs}
        # One for each trial: the initial state holds its numbers.
        self.optimizers = [make_optimizer(**config.optim, **lengths) for config in configs]
        self.members = Members(self.setup, self.shared, mesh)
        seeds = np.array([config.seed for config in configs], np.uint32)
        self.keys = shard(jax.vmap(jax.random.key)(seeds), mesh, SPLIT)
        self.num_bytes = self.members.compile(self.setup.arrays_like()["state"], self.size)

    def run(self, until: int | None, dropped: Dropped) -> None:
        """To the end of every trial, or to the epoch `until`."""
        train, per_epoch = self.setup.config.train, self.setup.data.steps_per_epoch
        (self.workdir / PROGRESS).unlink(missing_ok=True)
        params = [init(jax.random.key(trial.config.seed)) for trial, init in self.sound]
        mesh, identity = self.members.mesh, self._identity()
        first = begin(params, self.optimizers, mesh, len(self.trials))
        self.now = load_position(self.workdir / CHECKPOINTS, first, identity, mesh)
        self.ends = [dropped.get(trial.directory, train.num_epochs) for trial in self.trials]
        last = train.num_epochs if until is None else min(until, train.num_epochs)
        pace, self.saved_step = Pace(train.steps_per_call), self.now.step
        self.saved_at = time.monotonic()
        self.signals.unsaved = True
        with closing(Checkpoints(self.workdir / CHECKPOINTS)) as self.checkpoints:
            while self.now.epoch < last and self._active().any():
                epoch = min(self.now.epoch + train.eval_every_epochs, train.num_epochs)
                while (left := epoch * per_epoch - self.now.step) > 0:
                    started, num_steps = time.perf_counter(), pace.num_steps(left)
                    self._make_steps(num_steps)
                    pace.took(time.perf_counter() - started, num_steps)
                    if num_steps < left:  # else after the evaluation, as `until` needs it
                        self._save_if_due()
                self._evaluate(epoch)
                self._save_if_due()
            active = self._active()
            ended = last == train.num_epochs or not active.any()
            if not ended:
                self._save()
        self.signals.unsaved = False
        if ended:
            self._conclude()
        else:
            names = [trial.directory.name for trial in self.trials]
            seen = {name: self.now.records[i] for i, name in enumerate(names) if active[i]}
            write_json(self.workdir / PROGRESS, seen)

    def _active(self) -> np.ndarray:
        """Which of the N are still trained."""
        active = np.zeros(self.size, bool)
        for i, progress in enumerate(self.now.progress):
            goes_on = not progress.stopped and self.now.epoch < self.ends[i]
            active[i] = goes_on and i not in self.now.failures
        return active

    def _make_steps(self, num_steps: int) -> None:
        active = self._active()
        self.now.states, log = self.members.train(self.now.states, self.keys, num_steps * active)
        self.now.logs.append(jax.tree.map(lambda x: np.asarray(x)[:, :num_steps], log))
        self.now.step += num_steps
        most = self.setup.config.train.max_skipped_steps
        skipped = np.asarray(self.setup.optimizer.num_skipped(self.now.states.opt_state))
        for i in np.flatnonzero(active & (skipped > most)).tolist():
            self._fail(i, self._diagnose(i))

    def _diagnose(self, i: int) -> str:
        """What went wrong in the last step of a member."""
        state, data = self._member(self.now.states, i), self.setup.data
        key, hparams = jax.random.key(self.trials[i].config.seed), self.shared.hparams
        return diagnose(
            self.setup.task.loss_and_metrics,
            data,
            state,
            key,
            1,
            operations=False,
            hparams=jax.tree.map(lambda x: x[i], hparams),
        )

    def _evaluate(self, epoch: int) -> None:
        """Ends an interval: records, and what they mean for the best weights and for stopping."""
        task, per_epoch = self.setup.task, self.setup.data.steps_per_epoch
        opt_state = self.now.states.opt_state
        params = self.setup.optimizer.eval_params(self.now.states.params, opt_state)
        log = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *self.now.logs)
        valid = task.splits.get("valid")
        means = self.members.metrics(params, valid) if valid else []
        finite = np.asarray(all_finite(params))
        better = np.zeros(self.size, bool)
        for i in np.flatnonzero(self._active()).tolist():
            try:
                of_member = jax.tree.map(lambda x, i=i: x[i], log)
                records = epoch_records(of_member, per_epoch, self.now.epoch)
                if not finite[i]:
                    [bad] = first_bad(self._member(params, i), "the parameter")
                    raise UserError(f"after epoch {epoch} {bad}")
                if means:
                    records[-1]["valid"] = means[i]
                    if not np.isfinite(loss := means[i]["loss"]):
                        raise UserError(f"after epoch {epoch} the validation loss is {loss}")
            except UserError as error:
                self._fail(i, str(error))
                continue
            self.now.records[i] += records
            config = self.trials[i].config
            self.now.progress[i] = advance(self.now.progress[i], records[-1], config.train)
            better[i] = self.now.progress[i].best_epoch == epoch
            self.watch(self.trials[i], records)
        is_better = shard(better, self.members.mesh, SPLIT)
        self.now.best_params = choose(is_better, params, self.now.best_params)
        self.now.epoch, self.now.logs = epoch, []

    def _fail(self, i: int, reason: str) -> None:
        self.now.failures[i] = reason
        save_failure(self.trials[i], reason)

    def _conclude(self) -> None:
        """Ends every trial that has not failed."""
        splits = self.setup.task.splits
        evaluate = partial(self.members.metrics, self.now.best_params)
        means = {split: evaluate(rows) for split, rows in splits.items()}
        alive = {}
        if self.setup.config.train.dropout_at_test:
            alive = {split: evaluate(rows, self.keys) for split, rows in splits.items()}
        best = jax.device_get(self.now.best_params)
        for i, trial in enumerate(self.trials):
            if trial.has_ended:
                continue
            params = self._member(best, i)
            own = ({split: table[split][i] for split in table} for table in (means, alive))
            result = summarize(self.setup, params, self.now.progress[i], *own)
            save_result(
                trial, params, self.now.progress[i], self.now.records[i], self.files, result
            )

    @staticmethod
    def _member(tree: Any, i: int) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[i], tree)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must be of, to be this group's."""
        splits = self.setup.task.splits
        return {
            "configs": [as_json(trial.config) for trial in self.trials],
            "data": {split: arrays_digest(rows) for split, rows in splits.items()},
        }

    def _save_if_due(self) -> None:
        if self.signals.received is not None:
            self._save()
            self.checkpoints.close()
            told = f"stopped and saved at epoch {self.now.epoch}: the same command resumes there"
            raise Stopped(self.signals.received, told)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if self.now.step > self.saved_step:
            save_position(self.checkpoints, self.now, self._identity())
        self.saved_step, self.saved_at = self.now.step, time.monotonic()
