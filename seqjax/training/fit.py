"""Trains or resumes a run, and evaluates the weights of one."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json, differing_fields
from seqjax.data.batching import count_rows
from seqjax.distributed.choices import Choice
from seqjax.distributed.devices import bfloat16_note, start_jax
from seqjax.distributed.mesh import WHOLE, shard
from seqjax.distributed.packing import pack, unpack
from seqjax.distributed.processes import (
    broadcast,
    broadcast_bytes,
    is_main,
    num_processes,
    process_directory,
)
from seqjax.errors import UserError, one_line
from seqjax.files import read_json, sha256, write_json
from seqjax.parameters import count_parameters, parameter_shapes, parameter_table
from seqjax.plots import draw_curves
from seqjax.runs.checkpoint import Checkpoint, Checkpoints, NoCheckpoints, newest, set_aside_after
from seqjax.runs.identity import Identity, differences, kept_choice, make_identity
from seqjax.runs.signals import StopSignals, say
from seqjax.runs.weights import WEIGHTS_FILE, as_params, is_imported, read_weights
from seqjax.runs.workdir import (
    CHECKPOINTS,
    RESULT,
    earlier_identities,
    load_run_config,
    lock_workdir,
    other_packages,
    record_change,
    save_identity,
    saved_identity,
)
from seqjax.tasks.base import Predict, Task, fitted_files
from seqjax.tasks.registry import make_task
from seqjax.training.early_stopping import Progress, derive_progress, read_progress
from seqjax.training.logger import EXAMPLES, METRICS, MetricLogger, add_examples, read_records
from seqjax.training.position import FORMAT, begin, begins_again, resume, with_schedule
from seqjax.training.programs import DataParallel, evaluation_key
from seqjax.training.setup import Setup, make_setup
from seqjax.training.train_step import make_keys
from seqjax.training.trainer import Listeners, Profile, Trainer
from seqjax.typing import Params


def fit(
    task: Task,
    config: ConfigDict,
    workdir: Path,
    *,
    allow_changes: bool = False,
    debug_nans: bool = False,
    profile: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Trains or resumes the run in `workdir`, and returns the contents of result.json.

    The result is that of the best weights by `train.monitor`. With `allow_changes` a run continues
    with another config or other data, which is recorded in changes.jsonl. With `debug_nans` a
    non-finite value is traced to its operation. `profile` is the first step and the number of steps
    to trace; 0 steps trace nothing. Raises UserError for a config or a directory that cannot be
    used and for a non-finite loss or gradient, and Stopped after a signal. All processes of a run
    must call it with the same arguments; only process 0 uses the directory.
    """
    setup = make_setup(task, config)
    check_profile(setup, *profile)
    if is_imported(workdir):
        raise UserError(f"{workdir} holds weights trained elsewhere: give a new --workdir")
    with process_directory(workdir) as workdir, lock_workdir(workdir), StopSignals() as signals:
        old = saved_identity(workdir, say)
        kept = broadcast(old and kept_choice(old))
        if kept and Choice(*kept) != setup.choice:
            setup = make_setup(task, config, Choice(*kept))
        files = (
            [workdir / name for name in old.fingerprint["files"]]
            if old
            else task.save_fitted(workdir)
        )
        identity = make_identity(config, task.splits, setup.choice, files)
        _check_same_everywhere(identity)
        changed = differences(old, identity) if old else []
        if changed and not allow_changes:
            raise UserError(
                f"{workdir} holds a run of another config or other data ({'; '.join(changed)}): "
                "give a new --workdir, the old settings to resume, or --resume=allow_changes"
            )
        if result := broadcast(None if changed else _finished(workdir)):
            print(f"{workdir} holds the finished run of this config; nothing to do")
            return result
        found = _find_checkpoint(setup, workdir, identity, old)
        step = found.step if found else 0
        changed += other_packages(workdir)
        if changed:
            print(one_line(f"changed from step {step} on: {'; '.join(changed)}"))
            record_change(workdir, step, changed, old or identity)
        save_identity(workdir, identity)
        set_aside_after(workdir / CHECKPOINTS, step)
        trainer = _train(setup, identity, found, workdir, signals, debug_nans, profile)
        best_params, trial = trainer.now.best_params, trainer.now.trials[0]
        result, lines = conclude(trainer.setup, best_params, trial.progress, workdir)
        result |= trainer.costs()
        write_json(workdir / RESULT, result)  # before a terminal can fail
        files = ", ".join(sorted(path.name for path in workdir.iterdir()))
        for line in [*lines, f"written to {workdir}: {files}"]:
            print(line)
    return result


def check_profile(setup: Setup, start: int, num_steps: int) -> None:
    """Raises UserError for steps to trace that the run does not have."""
    total = setup.data.steps_per_epoch * setup.config.train.num_epochs
    if not (start >= 0 and num_steps >= 0 and start + num_steps <= total):
        raise UserError(f"--profile={start}:{num_steps}: the run has the steps 0 to {total}")


def _check_same_everywhere(identity: Identity) -> None:
    """Raises UserError in a process whose config or data are not those of process 0."""
    lines = differing_fields(broadcast(identity._asdict()), identity._asdict())
    if lines:
        raise UserError(
            f"process {jax.process_index()} does not have the config and data of process 0 "
            f"({'; '.join(lines)}): start all processes with the same flags and files"
        )


def _finished(workdir: Path) -> dict[str, Any] | None:
    """Returns the result of a finished run, or None if there is none or it is damaged."""
    if not (workdir / RESULT).exists():
        return None
    try:
        return read_json(workdir / RESULT)
    except UserError as damage:
        say(f"{damage}; it will be written again")
        return None


def _find_checkpoint(
    setup: Setup, workdir: Path, identity: Identity, old: Identity | None
) -> Checkpoint | None:
    """Returns the newest intact checkpoint of the run, or None if there is none."""
    known = [identity, *([old] if old else []), *earlier_identities(workdir)]
    like = setup.arrays_like()
    found = _of_main(newest(workdir / CHECKPOINTS, like, _foreign_to(known), say), like)
    if found is None:
        return None
    if found.facts.get("format") != FORMAT:
        raise UserError(
            f"{workdir} was begun by another version of seqjax, which alone can resume it: train "
            "in a new --workdir"
        )
    where = found.facts["epoch"] + found.facts["place"] / found.facts["schedule"]["steps_per_epoch"]
    if found.facts["evaluated"] < where and setup.config.train.num_epochs < where:
        raise UserError(
            f"train.num_epochs={setup.config.train.num_epochs}: the run is at epoch {where:.4g}, "
            f"which is to be evaluated first: give at least {math.ceil(where)}"
        )
    print(f"resuming at step {found.step} (epoch {where:.4g})")
    if begins_again(setup, found):
        epoch = found.facts["epoch"] + 1
        print(f"epoch {epoch} begins again: its batches are not those of before")
    return found


def _of_main(found: Checkpoint | None, like: Any) -> Checkpoint | None:
    """Returns the checkpoint that process 0 has read, in every process.

    It is sent over the network because the other processes may not see process 0's files, and
    because two processes that read a damaged checkpoint could disagree about it.
    """
    if num_processes() == 1:
        return found
    known = broadcast(found and [found.step, found.facts])
    if known is None:
        return None
    step, facts = known
    packed = broadcast_bytes(pack(found.arrays) if found else np.zeros(0, np.uint8))
    return Checkpoint(step, unpack(packed, like), facts)


def _train(
    setup: Setup,
    identity: Identity,
    found: Checkpoint | None,
    workdir: Path,
    signals: StopSignals,
    debug_nans: bool,
    profile: tuple[int, int],
) -> Trainer:
    """Trains from a checkpoint, or from the beginning, to the end; returns the trainer."""
    train = setup.config.train
    if found:
        setup = with_schedule(setup, found)
    program = DataParallel(setup)
    params = jax.jit(setup.task.init)(make_keys(setup.config.seed).init)
    now = begin(program, [params], [setup.optimizer])
    if found:
        now = resume(program, now, found)
    [trial] = now.trials
    checkpoints = Checkpoints(workdir / CHECKPOINTS) if is_main() else NoCheckpoints()
    logger = MetricLogger(
        workdir,
        records=trial.records[: now.evaluated],
        step=now.step,
        num_epochs=train.num_epochs,
        rows_per_epoch=count_rows(setup.data.rows),
        main_metric=setup.task.main_metric,
        log_every_epochs=train.log_every_epochs,
    )

    def give_up(trial: int, reason: str) -> None:
        step = trainer.saved_step
        kept = f"the checkpoint of step {step} stays" if step else "nothing was saved yet"
        raise UserError(
            f"{reason}; {kept}: lower optim.learning_rate, set optim.clip_norm, or allow "
            "train.max_skipped_steps"
        )

    trainer = Trainer(
        program,
        now,
        checkpoints,
        identity._asdict(),
        Listeners(
            lambda _, records: logger.add(records),
            lambda _, lines: logger.add_steps(lines),
            give_up,
        ),
        signals,
        debug_nans=debug_nans,
        profile=Profile(*profile, workdir / "profile"),
    )
    with closing(checkpoints), logger:
        logger.say(parameter_table(now.state.params))
        logger.say(setup.choice.describe())
        if note := bfloat16_note(train):
            logger.say(note)
        if setup.data.buckets:
            logger.say(setup.data.buckets.describe(setup.task.lengths))
        started = time.perf_counter()
        trainer.run()
        if trial.progress.stopped:
            best = trial.progress.best_epoch
            logger.say(f"stopped early: {train.monitor} was best at epoch {best}")
        seconds = time.perf_counter() - started
        logger.say(f"trained to epoch {trial.progress.epoch} in {seconds:.1f} s")
    signals.unsaved = False
    return trainer


def _foreign_to(known: list[Identity]) -> Callable[[dict[str, Any]], str]:
    """Returns a function that says how a checkpoint differs from all these identities, or ""."""

    def is_foreign(facts: dict[str, Any]) -> str:
        saved = Identity(facts["config"], facts["fingerprint"])
        changes = [differences(saved, identity) for identity in known]
        return "" if [] in changes else "; ".join(changes[0][:3])

    return is_foreign


def conclude(
    setup: Setup, params: Any, progress: Progress, workdir: Path
) -> tuple[dict[str, Any], list[str]]:
    """Returns the metrics of every split, and lines of them and of examples; draws pictures."""
    task, evaluator = setup.task, setup.evaluator
    predict = cache(lambda split: evaluator.predict(params, task.splits[split]))

    def mean_metrics(split: str, dropout: bool) -> dict[str, float]:
        key = evaluation_key(make_keys(setup.config.seed)) if dropout else None
        return evaluator.metrics(params, task.splits[split], key)

    result = summarize(setup, params, progress, mean_metrics, predict)
    records = read_records(workdir / METRICS) if (workdir / METRICS).exists() else []
    if records:
        draw_curves(records, ("loss", task.main_metric), workdir / "curves.png")
    lines = [one_line(line) for line in task.show_examples(params, predict, workdir)]
    if not any(workdir.glob(f"events.out.*{EXAMPLES}")):  # evaluating a run again adds nothing
        step = records[progress.best_epoch - 1]["step"] if records and progress.best_epoch else 0
        add_examples(workdir, lines, sorted(workdir.glob("*.png")), step)
    for split in task.splits:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in result[split].items())
        lines.append(f"{split} (epoch {progress.best_epoch}): {numbers}")
    return result, lines


def summarize(
    setup: Setup,
    params: Params,
    progress: Progress,
    mean_metrics: Callable[[str, bool], dict[str, float]],
    predict: Predict,
) -> dict[str, Any]:
    """Returns the metrics of every split and what result.json holds beside them.

    `mean_metrics` returns those of a split without or with dropout; `predict` the task's outputs.
    """
    result: dict[str, Any] = {}
    for split in setup.task.splits:
        result[split] = mean_metrics(split, False)
        if setup.config.train.dropout_at_test:
            with_dropout = mean_metrics(split, True)
            result[split] |= {f"{name}_dropout": value for name, value in with_dropout.items()}
        result[split] |= setup.task.corpus_metrics(predict, split, result[split])
    return result | {
        "best_epoch": progress.best_epoch,
        "num_epochs": progress.epoch,
        "num_parameters": count_parameters(params),
    }


class LoadedRun(NamedTuple):
    """The best weights of a run, and what is needed to use them."""

    setup: Setup  # with the task and the config
    params: Params
    progress: Progress


def load_run(workdir: Path, config: ConfigDict | None = None) -> LoadedRun:
    """Returns the best weights of a run, finished or not, with its task and data.

    `config` is the run's own, if it has been read already. Starts JAX on the config's devices.
    Raises UserError for a directory without a run, and for a run without a checkpoint.
    """
    config = config or load_run_config(workdir, say)
    start_jax(config.train.num_devices)
    setup = make_setup(make_task(config, workdir), config)
    return LoadedRun(setup, *restore_best(setup, workdir))


def restore_best(setup: Setup, workdir: Path) -> tuple[Params, Progress]:
    """Returns a run's best weights so far and its progress; UserError if it has no checkpoint."""
    saved = saved_identity(workdir, say)
    known = [saved, *earlier_identities(workdir)] if saved else []
    like = {"best_params": parameter_shapes(setup.task.init)}
    found = newest(workdir / CHECKPOINTS, like, _foreign_to(known), say)
    if found is None and (workdir / WEIGHTS_FILE).exists():
        return _restore_weights(setup, workdir)
    if found is None:
        raise UserError(f"{workdir} has no checkpoint yet: train it first")
    for name, digest in found.facts["fingerprint"]["files"].items():
        if not (workdir / name).is_file() or sha256(workdir / name) != digest:
            raise UserError(f"{workdir / name} is not the one of this run: restore it from a copy")
    progress = _progress_in(found.facts, setup)
    if not progress.best_epoch:
        raise UserError(f"{workdir} has no evaluated weights yet: train it further first")
    return shard(found.arrays["best_params"], setup.mesh, WHOLE), progress


def _progress_in(facts: dict[str, Any], setup: Setup) -> Progress:
    """Returns the progress of a run from a checkpoint, also from one of version 0.1."""
    if "progress" in facts:
        return Progress(**facts["progress"])
    [trial] = facts["trials"]
    train = setup.config.train
    return derive_progress(trial["records"], trial["best_epoch"], facts["evaluated"], train)


def _restore_weights(setup: Setup, workdir: Path) -> tuple[Params, Progress]:
    """Returns the weights that were imported into a run's directory, and their progress.

    Raises UserError unless they are intact and belong to the config and the fitted files there.
    """
    path = workdir / WEIGHTS_FILE
    weights, config = read_weights(path), as_json(setup.config)
    if changed := differences(Identity(weights.config, {}), Identity(config, {})):
        raise UserError(
            f"{path} is of another config ({'; '.join(changed)}): restore config.json from a copy"
        )
    for name in fitted_files(setup.task):
        there = workdir / name
        if not there.is_file() or sha256(there) != sha256([weights.files.get(name, "").encode()]):
            raise UserError(f"{there} is not the one of this run: restore it from a copy")
    params = as_params(path, weights.tensors, parameter_shapes(setup.task.init))
    return shard(params, setup.mesh, WHOLE), read_progress(path, weights.progress)
