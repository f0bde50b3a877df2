"""A group of trials, trained together from their first epoch, or their last checkpoint, on.

The group's directory holds what resuming needs: checkpoints of all members, and what the task
fitted to the training data, which all share. Imports: members, fit, trial.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from seqjax.array_types import Params
from seqjax.checkpoint import Checkpoints, newest, set_aside_after
from seqjax.config import as_json
from seqjax.diagnose import diagnose, first_bad
from seqjax.errors import UserError
from seqjax.fingerprint import arrays_digest
from seqjax.fit import summarize_splits
from seqjax.members import Members, choose, share_config, stack
from seqjax.memory import memory_bytes
from seqjax.mesh import SPLIT, make_mesh, put
from seqjax.optim import Optimizer, make_optimizer
from seqjax.parameters import count_parameters
from seqjax.progress import Pace, Progress, advance
from seqjax.report import Record
from seqjax.run_directory import CHECKPOINTS, held
from seqjax.setup import Setup, make_setup
from seqjax.stop_signals import Stopped, StopSignals, say
from seqjax.tasks import make_task
from seqjax.traced import given
from seqjax.train import StepLog, TrainState, init_train_state
from seqjax.training import epoch_records, log_from_json, log_to_json
from seqjax.trial import Trial, save_failure, save_result

SAVE_SECONDS = 60.0  # of training that a kill may cost
MEMORY_SHARE = 0.5  # of the machine's, for a group

Watch = Callable[[Trial, list[Record]], None]  # is told of every trial after each evaluation


def train_group(
    trials: Sequence[Trial],
    workdir: Path,
    watch: Watch = lambda trial, records: None,
    *,
    until: int | None = None,
    dropped: Collection[Trial] = (),
    max_bytes: float | None = None,
) -> None:
    """Trains trials of one group key to their end, or goes on with them.

    With `until` only up to that epoch; the trials that are `dropped` end where they are. A group
    that would take more than `max_bytes` of memory is trained in halves. A trial that fails ends
    alone. Raises UserError where the directory cannot be used, and Stopped after a signal.
    """
    if all(trial.has_ended for trial in trials):
        return
    limit = MEMORY_SHARE * memory_bytes() if max_bytes is None else max_bytes
    with held(workdir), StopSignals() as signals:
        sound = _sound(trials, workdir)
        group = Group(sound, workdir, signals, watch) if sound else None
        too_large = group is not None and group.num_bytes > limit and len(sound) > 1
        if group and not too_large:
            group.run(until, dropped)
    if too_large:
        half = len(trials) // 2
        for name, part in (("first", trials[:half]), ("second", trials[half:])):
            options = {"until": until, "dropped": dropped, "max_bytes": limit}
            train_group(part, workdir / name, watch, **options)


def _sound(trials: Sequence[Trial], workdir: Path) -> list[tuple[Trial, Callable]]:
    """The trials that can be begun, with their `init`; the others end as failures."""
    sound, inits = [], {}
    for trial in trials:
        kind = json.dumps(as_json(trial.config) | {"seed": 0})
        try:
            if kind not in inits:
                task = make_task(trial.config, workdir)
                task.save(workdir)  # what the first one fits to the data, the others read
                make_setup(task, trial.config)  # for its complaints
                inits[kind] = jax.jit(task.init)
            sound.append((trial, inits[kind]))
        except UserError as error:
            if not trial.has_ended:
                save_failure(trial, str(error))
    return sound


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
        self.size = len(sound) + -len(sound) % mesh.size
        configs = [trial.config for trial in self.trials]
        configs += [configs[0]] * (self.size - len(sound))
        shared, traced = share_config(configs)
        self.setup: Setup = make_setup(make_task(shared, workdir), shared)
        self.files = self.setup.task.save(workdir)
        self.optimizers = [self._make_optimizer(config) for config in configs]
        self.members = Members(self.setup, traced, mesh)
        self.numbers = [(number, values) for number, values in traced]
        seeds = np.array([config.seed for config in configs], np.uint32)
        self.keys = put(jax.vmap(jax.random.key)(seeds), mesh, SPLIT)
        init_of = [init for _, init in sound] + [sound[0][1]] * (self.size - len(sound))
        params = [
            init(jax.random.key(config.seed)) for init, config in zip(init_of, configs, strict=True)
        ]
        states = [init_train_state(p, self.setup.optimizer) for p in params]
        self.states: TrainState = stack(states, mesh)
        self.best_params = stack(params, mesh)
        self.epoch = self.step = 0
        self.progress = [Progress() for _ in self.trials]
        self.records: list[list[Record]] = [[] for _ in self.trials]
        self.failures: dict[int, str] = {}
        self.logs: list[StepLog] = []  # [N, steps] each, since the last evaluation
        self.num_bytes = self.members.compile(self.states, self.keys)

    def run(self, until: int | None, dropped: Collection[Trial]) -> None:
        """To the end of every trial, or to the epoch `until`."""
        train, per_epoch = self.setup.config.train, self.setup.data.steps_per_epoch
        self._resume()
        for i, trial in enumerate(self.trials):
            if trial in dropped:
                self.progress[i] = self.progress[i]._replace(stopped=True)
        last = train.num_epochs if until is None else min(until, train.num_epochs)
        pace, self.saved_at = Pace(train.steps_per_call), time.monotonic()
        self.signals.unsaved = True
        with closing(Checkpoints(self.workdir / CHECKPOINTS)) as self.checkpoints:
            while self.epoch < last and self._active().any():
                epoch = min(self.epoch + train.eval_every_epochs, train.num_epochs)
                while (left := epoch * per_epoch - self.step) > 0:
                    started, num_steps = time.perf_counter(), pace.num_steps(left)
                    self._make_steps(num_steps)
                    pace.took(time.perf_counter() - started, num_steps)
                    self._save_if_due()
                self._evaluate(epoch)
                self._save_if_due()
            ended = last == train.num_epochs or not self._active().any()
            if not ended:
                self._save()
        self.signals.unsaved = False
        if ended:
            self._conclude()

    def _active(self) -> np.ndarray:
        """Which of the N are still trained."""
        active = np.zeros(self.size, bool)
        for i, progress in enumerate(self.progress):
            active[i] = not progress.stopped and i not in self.failures
        return active

    def _make_steps(self, num_steps: int) -> None:
        active = self._active()
        self.states, log = self.members.train(self.states, self.keys, num_steps * active)
        log = jax.device_get(log)
        self.logs.append(jax.tree.map(lambda x: x[:, :num_steps], log))
        self.step += num_steps
        skipped = np.asarray(self.setup.optimizer.num_skipped(self.states.opt_state))
        for i in np.flatnonzero(active & (skipped > self.setup.config.train.max_skipped_steps)):
            self._fail(int(i), self._diagnose(int(i)))

    def _diagnose(self, i: int) -> str:
        """What went wrong in the last step of a member."""
        state, data = self._member(self.states, i), self.setup.data
        with given((number, values[i]) for number, values in self.numbers):
            key = jax.random.key(self.trials[i].config.seed)
            return diagnose(self.setup.task.measure, data, state, key, 1, operations=False)

    def _evaluate(self, epoch: int) -> None:
        """Ends an interval: records, and what they mean for the best weights and for stopping."""
        task, per_epoch = self.setup.task, self.setup.data.steps_per_epoch
        opt_state = self.states.opt_state
        params = self.setup.optimizer.eval_params(self.states.params, opt_state)
        log = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *self.logs)
        valid = task.splits.get("valid")
        means = self.members.metrics(params, valid) if valid else []
        finite = np.asarray(all_finite(params))
        better = np.zeros(self.size, bool)
        for i in np.flatnonzero(self._active()):
            try:
                of_member = jax.tree.map(lambda x, i=i: x[i], log)
                rate = cache(lambda step, i=i: self._learning_rate(i, step))
                records = epoch_records(of_member, per_epoch, self.epoch, rate)
                if not finite[i]:
                    [bad] = first_bad(self._member(params, i), "the parameter")
                    raise UserError(f"after epoch {epoch} {bad}")
                if means:
                    records[-1]["valid"] = means[i]
                    if not np.isfinite(loss := means[i]["loss"]):
                        raise UserError(f"after epoch {epoch} the validation loss is {loss}")
            except UserError as error:
                self._fail(int(i), str(error))
                continue
            self.records[i] += records
            train = self.trials[i].config.train
            self.progress[i] = advance(self.progress[i], records[-1], train)
            better[i] = self.progress[i].best_epoch == epoch
            self.watch(self.trials[i], records)
        self.best_params = choose(better, params, self.best_params)
        self.epoch, self.logs = epoch, []

    def _learning_rate(self, i: int, step: int) -> Any:
        rates = self.optimizers[i].learning_rate(self.states.opt_state, step)
        return np.broadcast_to(rates, self.size)[i]

    def _fail(self, i: int, reason: str) -> None:
        self.failures[i] = reason
        save_failure(self.trials[i], reason)

    def _conclude(self) -> None:
        """Ends every trial that has not failed."""
        splits, best = self.setup.task.splits, jax.device_get(self.best_params)
        means = {split: self.members.metrics(self.best_params, splits[split]) for split in splits}
        alive = {}
        if self.setup.config.train.dropout_at_test:
            alive = {
                split: self.members.metrics(self.best_params, splits[split], self.keys)
                for split in splits
            }
        for i, trial in enumerate(self.trials):
            if trial.has_ended:
                continue
            params, progress = self._member(best, i), self.progress[i]

            def measure(split: str, dropout_alive: bool, i: int = i) -> dict[str, float]:
                return dict((alive if dropout_alive else means)[split][i])

            predict = cache(
                lambda split, params=params: self.setup.evaluator.predict(params, splits[split])
            )
            result = summarize_splits(self.setup, measure, predict) | {
                "best_epoch": progress.best_epoch,
                "num_epochs": progress.epoch,
                "num_parameters": count_parameters(params),
            }
            save_result(trial, params, progress, self.records[i], self.files, result)

    def _make_optimizer(self, config: ConfigDict) -> Optimizer:
        """A member's own, for what is asked of it on the host."""
        per_epoch = self.setup.data.steps_per_epoch
        num_epochs = config.train.num_epochs
        return make_optimizer(**config.optim, steps_per_epoch=per_epoch, num_epochs=num_epochs)

    @staticmethod
    def _member(tree: Any, i: int) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[i], tree)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside arrays, but for where the group is."""
        splits = self.setup.task.splits
        return {
            "configs": [as_json(trial.config) for trial in self.trials],
            "data": {split: arrays_digest(rows) for split, rows in splits.items()},
        }

    def _save_if_due(self) -> None:
        if self.signals.received is not None:
            self._save()
            self.checkpoints.close()
            told = f"stopped and saved at epoch {self.epoch}: the same command resumes there"
            raise Stopped(self.signals.received, told)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        facts = self._facts() | {
            "epoch": self.epoch,
            "progress": [progress._asdict() for progress in self.progress],
            "records": self.records,
            "failures": {str(i): reason for i, reason in self.failures.items()},
            "logs": [log_to_json(log) for log in self.logs],
        }
        arrays = {"state": self.states, "best_params": self.best_params}
        self.checkpoints.prepare(self.step, arrays, facts, self.step)()
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        """Takes the newest whole checkpoint's position, if there is one."""
        own = json.loads(json.dumps(self._facts()))

        def is_foreign(facts: dict[str, Any]) -> str:
            changed = [name for name in own if facts.get(name) != own[name]]
            return f"other {' and '.join(changed)}" if changed else ""

        like = jax.eval_shape(lambda: {"state": self.states, "best_params": self.best_params})
        found = newest(self.workdir / CHECKPOINTS, like, is_foreign, say)
        set_aside_after(self.workdir / CHECKPOINTS, found.step if found else 0)
        if found:
            arrays, facts = put(found.arrays, self.members.mesh, SPLIT), found.facts
            self.states, self.best_params = arrays["state"], arrays["best_params"]
            self.step, self.epoch, self.records = found.step, facts["epoch"], facts["records"]
            self.progress = [Progress(**progress) for progress in facts["progress"]]
            self.failures = {int(i): reason for i, reason in facts["failures"].items()}
            self.logs = [log_from_json(log) for log in facts["logs"]]


@jax.jit
def all_finite(params: Params) -> Bool[Array, " N"]:
    """Which of the members have nothing but numbers."""
    leaves = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(params)]
    return jnp.stack(leaves).all(axis=0)
