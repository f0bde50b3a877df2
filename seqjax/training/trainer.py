"""The one training loop of a run.

Steps are made a call of the compiled program at a time. Between two calls, wherever in an epoch,
a run may be saved and stopped; the numbers do not depend on where the calls end.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.distributed.processes import gather
from seqjax.errors import UserError
from seqjax.metrics import Average, compute_means
from seqjax.runs.checkpoint import Checkpoints
from seqjax.runs.identity import Identity
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.training.debug_nans import diagnose, first_bad
from seqjax.training.early_stopping import Pace, Progress, advance
from seqjax.training.epoch import LOOPS
from seqjax.training.logger import MetricLogger, Record
from seqjax.training.setup import Setup
from seqjax.training.train_step import StepLog, TrainState
from seqjax.typing import Params


class Position(NamedTuple):
    """Where a run is: what its next step needs, and what it has found."""

    state: TrainState
    best_params: Params
    progress: Progress
    records: list[Record]
    logs: list[StepLog]  # of the steps since the last evaluation, on the host


class Training:
    """A run from a position on. `run` ends at the last epoch, an early stop, or an exception."""

    def __init__(
        self,
        setup: Setup,
        identity: Identity,
        position: Position,
        checkpoints: Checkpoints,
        report: MetricLogger,
        signals: StopSignals,
        debug_nans: bool,
    ):
        self.setup, self.identity, self.checkpoints = setup, identity, checkpoints
        self.report, self.signals, self.debug_nans = report, signals, debug_nans
        self.state, self.best_params, self.progress, self.records, self.logs = position
        self.step = self.saved_step = int(self.state.step)
        self._saved_at = time.monotonic()
        self._prepared: Callable[[], None] | None = None
        self._key = jax.random.key(setup.config.seed)
        self._pace = Pace(setup.config.train.steps_per_call)
        train = setup.config.train
        self._loop = LOOPS[train.loop](
            setup.task.loss_and_metrics,
            setup.optimizer,
            setup.data,
            setup.mesh,
            max_steps=train.eval_every_epochs * setup.data.steps_per_epoch,
            max_skipped=train.max_skipped_steps,
            microbatch_size=setup.microbatch_size,
        )

    def run(self) -> tuple[Params, Progress]:
        """Trains to the end; the best weights and where the run stands."""
        train, per_epoch = self.setup.config.train, self.setup.data.steps_per_epoch
        while self.progress.epoch < train.num_epochs and not self.progress.stopped:
            epoch = min(self.progress.epoch + train.eval_every_epochs, train.num_epochs)
            while (left := epoch * per_epoch - self.step) > 0:
                self._call(left)
                # A step has one checkpoint: at the end of an interval that after the evaluation.
                if self.step < epoch * per_epoch:
                    minutes = (time.monotonic() - self._saved_at) / 60
                    if 0 < train.checkpoint_every_minutes <= minutes:
                        self._save()
                    self._stop_if_asked()
            self._evaluate()
            ended = self.progress.stopped or self.progress.epoch == train.num_epochs
            saved_epoch = self.saved_step // per_epoch
            if ended or self.progress.epoch - saved_epoch >= train.checkpoint_every_epochs:
                self._save()
            self._stop_if_asked()
        self._write_prepared()
        if self.progress.stopped:
            best = self.progress.best_epoch
            self.report.say(f"stopped early: {train.monitor} was best at epoch {best}")
        return self.best_params, self.progress

    def _call(self, steps_left: int) -> None:
        """Some steps; raises UserError if too many of them had to be skipped."""
        started = time.perf_counter()
        num_steps = self._pace.num_steps(steps_left)
        self.state, log = self._loop(self.state, self._key, num_steps)
        self._write_prepared()  # while the devices work
        step = int(self.state.step)  # waits for the steps
        log = jax.device_get(log)
        if self._loop.program.num_compiled > 1:
            raise RuntimeError("the training program was compiled again: a batch changed its shape")
        self._pace.took(gather(time.perf_counter() - started)[0], num_steps)
        self.logs.append(jax.tree.map(lambda x: np.asarray(x)[: step - self.step], log))
        self.step, self.signals.unsaved = step, True
        skipped = int(self.setup.optimizer.num_skipped(self.state.opt_state))
        if skipped > self.setup.config.train.max_skipped_steps:
            setup = self.setup
            told = diagnose(
                setup.task.loss_and_metrics,
                setup.data,
                self.state,
                self._key,
                setup.mesh.size,
                operations=self.debug_nans,
            )
            before = f" ({skipped - 1} steps were skipped before)" if skipped > 1 else ""
            self._give_up(f"{told}{before}")

    def _evaluate(self) -> None:
        """Ends an interval: records, and what they mean for the best weights."""
        setup = self.setup
        params = setup.optimizer.eval_params(self.state.params, self.state.opt_state)
        log = jax.tree.map(lambda *xs: np.concatenate(xs), *self.logs)
        try:
            records = epoch_records(log, setup.data.steps_per_epoch, self.progress.epoch)
            self.logs = []
        except UserError as error:
            self._give_up(str(error))
        epoch = records[-1]["epoch"]
        if bad := first_bad(jax.device_get(params), "the parameter"):
            self._give_up(f"after epoch {epoch} {bad[0]}")
        if "valid" in setup.task.splits:
            valid = setup.evaluator.metrics(params, setup.task.splits["valid"])
            records[-1]["valid"] = valid
            if not np.isfinite(valid["loss"]):
                self._give_up(f"after epoch {epoch} the validation loss is {valid['loss']}")
        self.records += records
        self.report.add(records)
        self.progress = advance(self.progress, records[-1], setup.config.train)
        if self.progress.best_epoch == epoch:
            self.best_params = jax.tree.map(lambda x: x.copy(), params)  # the loop donates them

    def _save(self) -> None:
        """Prepares a checkpoint of the present position, unless there is one."""
        if self.step == self.saved_step:
            return
        facts = {
            "progress": self.progress._asdict(),
            "records": self.records,
            "logs": [log_to_json(log) for log in self.logs],
            **self.identity._asdict(),
        }
        arrays = {"state": self.state, "best_params": self.best_params}
        best_step = self.progress.best_epoch * self.setup.data.steps_per_epoch
        self._prepared = self.checkpoints.prepare(self.step, arrays, facts, best_step)
        self.saved_step, self._saved_at = self.step, time.monotonic()

    def _write_prepared(self) -> None:
        if self._prepared:
            self._prepared()
            self._prepared = None

    def _stop_if_asked(self) -> None:
        # A signal to any process stops them all, at the same step.
        if number := int(max(gather(self.signals.received or 0))):
            self._save()
            self._write_prepared()
            self.checkpoints.close()
            where = f"step {self.step} (epoch {self.step / self.setup.data.steps_per_epoch:.2f})"
            raise Stopped(number, f"stopped and saved at {where}: the same command resumes there")

    def _give_up(self, told: str) -> None:
        kept = f"the checkpoint of step {self.saved_step} stays"
        raise UserError(
            f"{told}; {kept if self.saved_step else 'nothing was saved yet'}: "
            "lower optim.learning_rate, set optim.clip_norm, or allow train.max_skipped_steps"
        )


def epoch_records(log: StepLog, per_epoch: int, first_epoch: int) -> list[dict[str, Any]]:
    """One record an epoch from the log of the steps of whole epochs, `first_epoch` of them before.

    Raises UserError for an epoch of which every step was skipped.
    """
    records = []
    for i in range(len(log.skipped) // per_epoch):
        part = jax.tree.map(lambda x, i=i: x[i * per_epoch : (i + 1) * per_epoch], log)
        epoch, made = first_epoch + i + 1, part.skipped == 0
        if not made.any():
            raise UserError(f"every step of epoch {epoch} had to be skipped")
        record = {
            "epoch": epoch,
            "step": epoch * per_epoch,
            "learning_rate": float(part.learning_rate[-1]),
            "train": compute_means(
                {n: Average(x.total[made], x.weight[made]) for n, x in part.metrics.items()}
            ),
        }
        skipped = {} if made.all() else {"skipped_steps": int((~made).sum())}
        records.append(record | skipped)
    return records


def log_to_json(log: StepLog) -> dict[str, Any]:
    """A log as nested dicts of lists."""
    metrics = {name: average._asdict() for name, average in log.metrics.items()}
    return jax.tree.map(np.ndarray.tolist, log._asdict() | {"metrics": metrics})


def log_from_json(value: dict[str, Any]) -> StepLog:
    """The log that `log_to_json` was given; a float32 is the same number as JSON's float64."""
    arrays: Any = jax.tree.map(np.asarray, value, is_leaf=lambda x: isinstance(x, list))
    metrics = {name: Average(**parts) for name, parts in arrays["metrics"].items()}
    return StepLog(**arrays | {"metrics": metrics})
