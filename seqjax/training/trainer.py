"""The one training loop, of a run and of the trials of a sweep.

Each call of the compiled program makes many steps. Training can be saved and stopped between any
two calls, wherever in an epoch; the numbers do not depend on where the calls end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.data.batching import count_rows
from seqjax.distributed.processes import gather
from seqjax.parameters import peak_memory_bytes
from seqjax.runs.checkpoint import Checkpoints
from seqjax.runs.signals import Stopped, StopSignals
from seqjax.training.debug_nans import diagnose, first_bad
from seqjax.training.early_stopping import TRAIN_EVAL, advance
from seqjax.training.epoch import Place
from seqjax.training.logger import Record
from seqjax.training.position import Position, epoch_record, step_line, to_facts, with_plateau
from seqjax.training.programs import Programs
from seqjax.training.train_step import StepLog


class Pace:
    """Chooses how many steps each call of the compiled program runs.

    A call takes about two seconds: a run can be saved and stopped between two calls, and the calls
    themselves add no noticeable time. `steps_per_call` fixes the number; 0 adapts it.
    """

    SECONDS = 2.0  # the time that a call should take
    GROWTH = 16  # largest factor between two calls, as the first times are not precise

    def __init__(self, steps_per_call: int):
        self._steps, self._fixed, self._compiled = steps_per_call or 1, bool(steps_per_call), False

    def num_steps(self, left: int) -> int:
        """Returns how many of the `left` steps to run in the next call; calls are of equal size."""
        calls = -(-left // self._steps)
        return min(left, self._steps) if self._fixed else -(-left // calls)

    def took(self, seconds: float, num_steps: int) -> None:
        """Adapts the number of steps to the time of a call, except the first, which compiles."""
        if self._compiled and not self._fixed:
            fit = int(num_steps * self.SECONDS / max(seconds, 1e-9))
            self._steps = max(1, min(fit, self.GROWTH * num_steps))
        self._compiled = True


class Profile:
    """Traces some steps of a run for xprof and Perfetto, `--profile=START:STEPS`.

    The trace begins after `start` steps of the run have been made and holds `num_steps` steps: the
    calls of the program are cut there. With `num_steps=0` nothing is traced.
    """

    def __init__(self, start: int = 0, num_steps: int = 0, directory: Path = Path()):
        self.start, self.end, self.directory = start, start + num_steps, directory
        self._running = False

    def limit(self, step: int, num_steps: int) -> int:
        """Returns how many of the next steps to run in one call; starts and ends the trace."""
        if self._running and step >= self.end:
            self.stop()
        elif not self._running and self.start <= step < self.end:
            jax.profiler.start_trace(str(self.directory), create_perfetto_trace=True)
            self._running = True
        bounds = [bound - step for bound in (self.start, self.end) if bound > step]
        return min([num_steps, *bounds]) if self.end > self.start else num_steps

    def stop(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Listeners(NamedTuple):
    """Callbacks that report on each trial, by its number."""

    add_records: Callable[[int, Sequence[Record]], None]  # new records, one an epoch
    add_steps: Callable[[int, Sequence[Mapping[str, Any]]], None]  # new lines of steps.jsonl
    fail: Callable[[int, str], None]  # why a trial cannot go on; may raise


class Trainer:
    """Trains N trials from a position on. `run` ends at the last epoch, when no trial goes on, or
    with an exception.

    `ends` holds the last epoch of each trial. `identity` is added to the facts of every checkpoint.
    """

    def __init__(
        self,
        program: Programs,
        position: Position,
        checkpoints: Checkpoints,
        identity: Mapping[str, Any],
        listeners: Listeners,
        signals: StopSignals,
        *,
        ends: Sequence[int] = (),
        debug_nans: bool = False,
        profile: Profile | None = None,
    ):
        self.program, self.setup, self.now = program, program.setup, position
        self.checkpoints, self.identity, self.listeners = checkpoints, identity, listeners
        self.signals, self.debug_nans, self.profile = signals, debug_nans, profile or Profile()
        train = self.setup.config.train
        self.ends = ends or [train.num_epochs] * program.num_trials
        self.saved_step, self._saved_epoch = position.step, position.evaluated
        self._saved_at = time.monotonic()
        self._clock, self._compiled = time.perf_counter(), program.compile_seconds
        position.seconds += program.compile_seconds  # zero unless it was compiled beforehand
        position.compile_seconds += program.compile_seconds
        self._prepared: Callable[[], None] | None = None
        self._pace = Pace(train.steps_per_call)

    def run(self, until: int | None = None) -> None:
        """Trains to the end, or to the epoch `until`, and saves."""
        try:
            self._run(until)
        finally:
            self.profile.stop()

    def _run(self, until: int | None) -> None:
        train, now = self.setup.config.train, self.now
        last = train.num_epochs if until is None else min(until, train.num_epochs)
        while now.evaluated < last and self.active().any():
            # A run that goes on with another interval may already be past its next evaluation.
            there = now.epoch + (now.place > 0)
            epoch = min(max(now.evaluated + train.eval_every_epochs, there), train.num_epochs)
            while (left := self._steps_to(epoch)) > 0:
                self._call(left)
                self._take_time()
                # One checkpoint per step: at the end of an interval it is saved after evaluating.
                if self._steps_to(epoch) > 0:
                    minutes = (time.monotonic() - self._saved_at) / 60
                    if 0 < train.checkpoint_every_minutes <= minutes:
                        self._save()
                    self._stop_if_asked()
            self._evaluate()
            self._take_time()
            ended = now.evaluated >= last or not self.active().any()
            if ended or now.evaluated - self._saved_epoch >= train.checkpoint_every_epochs:
                self._save()
            self._stop_if_asked()
        self._write_prepared()

    def costs(self) -> dict[str, float]:
        """Returns what training took of time and memory; all trials of a program share it."""
        now, num_rows = self.now, count_rows(self.setup.data.rows)
        trained = sum(len(trial.records) for trial in now.trials) * num_rows
        return {
            "wall_seconds": now.seconds,
            "compile_seconds": now.compile_seconds,
            "examples_per_second": trained / max(now.seconds - now.compile_seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def _take_time(self) -> None:
        time_now, compiled = time.perf_counter(), self.program.compile_seconds
        self.now.seconds += time_now - self._clock
        self.now.compile_seconds += compiled - self._compiled
        self._clock, self._compiled = time_now, compiled

    def active(self) -> np.ndarray:
        """Returns which trials are still trained, `[N]`."""
        return np.array(
            [
                not (trial.failure or trial.progress.stopped) and self.now.evaluated < end
                for trial, end in zip(self.now.trials, self.ends, strict=True)
            ]
        )

    def _steps_to(self, epoch: int) -> int:
        return (epoch - self.now.epoch) * self.setup.data.steps_per_epoch - self.now.place

    def _call(self, steps_left: int) -> None:
        """Runs some steps; a trial fails if too many of its steps were skipped."""
        now, active, started = self.now, self.active(), time.perf_counter()
        num_steps = self.profile.limit(now.step, self._pace.num_steps(steps_left))
        place = Place(now.epoch, now.place)
        now.state, log = self.program.train(now.state, place, num_steps, active)
        self._write_prepared()  # while the devices work
        log = self.program.log(log, num_steps)
        self._pace.took(gather(time.perf_counter() - started)[0], num_steps)
        now.step += num_steps
        self.signals.unsaved = True
        skipped = self._of_each(self.setup.optimizer.num_skipped)
        most = self.setup.config.train.max_skipped_steps
        for i in np.flatnonzero(active & (skipped > most)).tolist():
            self._fail(i, self._diagnose(i, place, now.step - num_steps, int(skipped[i])))
        self._add_log(log)

    def _of_each(self, read: Callable[[Any], Any]) -> np.ndarray:
        """Returns a number that is read from each trial's optimizer state, `[N]`."""
        return np.atleast_1d(np.asarray(read(self.now.state.opt_state)))[: self.program.num_trials]

    def _diagnose(self, i: int, place: Place, first_step: int, skipped: int) -> str:
        """Returns what went wrong in a trial's last step of a call that began at a place."""
        setup, state = self.setup, self.program.get(self.now.state, i)
        made = place.step + int(state.step) - 1 - first_step
        epoch, step = divmod(made, setup.data.steps_per_epoch)
        told = diagnose(
            setup.task.loss_and_metrics,
            setup.data,
            state,
            self.program.keys(i),
            Place(place.epoch + epoch, step),
            self.program.num_devices,
            operations=self.debug_nans,
            hparams=self.program.hparams(i),
        )
        return told + (f" ({skipped - 1} steps were skipped before)" if skipped > 1 else "")

    def _add_log(self, log: StepLog) -> None:
        """Adds the log of a call, and makes a record of every epoch that it completes."""
        now, per_epoch = self.now, self.setup.data.steps_per_epoch
        self._tell_steps(log)
        log = log._replace(norms={})
        if now.log is not None:
            log = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), now.log, log)
        active = np.flatnonzero(self.active()).tolist()
        first, num_steps = now.step - log.skipped.shape[1], log.skipped.shape[1]
        for end in range(per_epoch, num_steps + 1, per_epoch):
            now.epoch += 1
            for i in (i for i in active if not now.trials[i].failure):
                part = jax.tree.map(lambda x, i=i, end=end: x[i, end - per_epoch : end], log)
                record = epoch_record(part, now.epoch, first + end)
                if record is None:
                    self._fail(i, f"every step of epoch {now.epoch} had to be skipped")
                else:
                    now.trials[i].records.append(record)
        now.place = num_steps % per_epoch
        left = jax.tree.map(lambda x: x[:, num_steps - now.place :], log)
        now.log = left if now.place else None

    def _tell_steps(self, log: StepLog) -> None:
        """Tells the listeners the lines of steps.jsonl that a call has made."""
        every, num_steps = self.setup.config.train.log_every_steps, log.skipped.shape[1]
        if not every:
            return
        first, now = self.now.step - num_steps, self.now
        for i in np.flatnonzero(self.active()).tolist():
            lines = []
            for j in range(-(first + 1) % every, num_steps, every):
                done = now.place + j
                epoch = now.epoch + done // self.setup.data.steps_per_epoch + 1
                part = jax.tree.map(lambda x, i=i, j=j: x[i, j], log)
                lines.append(step_line(part, epoch, first + j + 1))
            self.listeners.add_steps(i, lines)

    def _evaluate(self) -> None:
        """Ends an interval: evaluates, and updates best weights, early stopping and plateau."""
        now, setup, train = self.now, self.setup, self.setup.config.train
        active, first = np.flatnonzero(self.active()).tolist(), now.evaluated
        now.evaluated = now.epoch
        params = setup.optimizer.eval_params(now.state.params, now.state.opt_state)
        measured = {}
        if "valid" in setup.task.splits:
            measured["valid"] = self.program.metrics(params, setup.task.splits["valid"])
        if train.monitor.startswith("train."):
            measured[TRAIN_EVAL] = self.program.metrics(params, setup.data.rows)
        finite, better = self.program.all_finite(params), np.zeros(len(now.trials), bool)
        for i in active:
            trial, record = now.trials[i], now.trials[i].records[-1]
            record |= {split: means[i] for split, means in measured.items()}
            if not finite[i]:
                [bad] = first_bad(self.program.get(params, i), "the parameter")
                self._fail(i, f"after epoch {now.epoch} {bad}")
            elif "valid" in record and not np.isfinite(loss := record["valid"]["loss"]):
                self._fail(i, f"after epoch {now.epoch} the validation loss is {loss}")
            else:
                trial.progress = advance(trial.progress, record, train)
                better[i] = trial.progress.best_epoch == now.epoch
                self.listeners.add_records(i, trial.records[first:])
        if better.any():
            now.best_params = self.program.choose(better, params, now.best_params)
        now.state = with_plateau(self.program, now)

    def _fail(self, i: int, reason: str) -> None:
        self.now.trials[i].failure = reason
        self.listeners.fail(i, reason)

    def _save(self) -> None:
        """Prepares a checkpoint of the present position, unless there is one."""
        now = self.now
        if (now.step, now.evaluated) == (self.saved_step, self._saved_epoch):
            return
        arrays = {"state": now.state, "best_params": now.best_params}
        arrays = {name: self.program.to_save(tree) for name, tree in arrays.items()}
        facts = {**to_facts(now, self.setup), **self.identity}
        self._prepared = self.checkpoints.prepare(now.step, arrays, facts, now.best_step())
        self.saved_step, self._saved_epoch = now.step, now.evaluated
        self._saved_at = time.monotonic()

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
            epoch = self.now.epoch + self.now.place / self.setup.data.steps_per_epoch
            where = f"step {self.now.step} (epoch {epoch:.2f})"
            raise Stopped(number, f"stopped and saved at {where}: the same command resumes there")
