"""Trains or resumes a run, and evaluates the weights of one."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json, differing_fields
from seqjax.data.batching import count_rows
from seqjax.distributed.devices import start_jax
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
from seqjax.runs.identity import Identity, differences, make_identity
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
from seqjax.training.early_stopping import Progress, read_progress
from seqjax.training.logger import MetricLogger
from seqjax.training.setup import Setup, make_setup
from seqjax.training.train_step import init_train_state
from seqjax.training.trainer import Position, Training, log_from_json
from seqjax.typing import Params


def fit(
    task: Task,
    config: ConfigDict,
    workdir: Path,
    *,
    allow_changes: bool = False,
    debug_nans: bool = False,
) -> dict[str, Any]:
    """Trains or resumes the run in `workdir`, and returns the contents of result.json.

    The result is that of the best weights by `train.monitor`. With `allow_changes` a run continues
    with another config or other data, which is recorded in changes.jsonl. With `debug_nans` a
    non-finite value is traced to its operation. Raises UserError for a config or a directory that
    cannot be used and for a non-finite loss or gradient, and Stopped after a signal. All processes
    of a run must call it with the same arguments; only process 0 uses the directory.
    """
    setup = make_setup(task, config)
    if is_imported(workdir):
        raise UserError(f"{workdir} holds weights trained elsewhere: give a new --workdir")
    with process_directory(workdir) as workdir, lock_workdir(workdir), StopSignals() as signals:
        old = saved_identity(workdir, say)
        files = (
            [workdir / name for name in old.fingerprint["files"]]
            if old
            else task.save_fitted(workdir)
        )
        identity = make_identity(config, task.splits, setup.mesh, files)
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
        position = _position(setup, workdir, identity, old)
        step = int(position.state.step)
        changed += other_packages(workdir)
        if changed:
            print(one_line(f"changed from step {step} on: {'; '.join(changed)}"))
            record_change(workdir, step, changed, old or identity)
        save_identity(workdir, identity)
        set_aside_after(workdir / CHECKPOINTS, step)
        best_params, progress = _train(setup, identity, position, workdir, signals, debug_nans)
        draw_curves(position.records, ("loss", task.main_metric), workdir / "curves.png")
        result = conclude(setup, best_params, progress, workdir)
        write_json(workdir / RESULT, result)
        print(f"written to {workdir}: {', '.join(sorted(p.name for p in workdir.iterdir()))}")
    return result


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


def _position(setup: Setup, workdir: Path, identity: Identity, old: Identity | None) -> Position:
    """Returns the position of the newest intact checkpoint, or that before the first step."""
    known = [identity, *([old] if old else []), *earlier_identities(workdir)]
    like = setup.arrays_like()
    found = _of_main(newest(workdir / CHECKPOINTS, like, _foreign_to(known), say), like)
    if found:
        facts, arrays = found.facts, shard(found.arrays, setup.mesh, WHOLE)
        epoch = found.step / setup.data.steps_per_epoch
        print(f"resuming at step {found.step} (epoch {epoch:.4g})")
        logs = [log_from_json(log) for log in facts["logs"]]
        progress, records = Progress(**facts["progress"]), facts["records"]
        return Position(**arrays, progress=progress, records=records, logs=logs)
    params = shard(jax.jit(setup.task.init)(jax.random.key(setup.config.seed)), setup.mesh, WHOLE)
    state = shard(init_train_state(params, setup.optimizer), setup.mesh, WHOLE)
    # The loop donates the state's buffers, so the best parameters are a copy.
    return Position(state, jax.tree.map(jnp.copy, params), Progress(), [], [])


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
    position: Position,
    workdir: Path,
    signals: StopSignals,
    debug_nans: bool,
) -> tuple[Params, Progress]:
    """Trains from a position to the end and saves the last checkpoint."""
    train, started = setup.config.train, time.perf_counter()
    checkpoints = Checkpoints(workdir / CHECKPOINTS) if is_main() else NoCheckpoints()
    report = MetricLogger(
        workdir,
        records=position.records,
        num_epochs=train.num_epochs,
        rows_per_epoch=count_rows(setup.data.rows),
        main_metric=setup.task.main_metric,
        log_every_epochs=train.log_every_epochs,
    )
    with closing(checkpoints), report:
        report.say(parameter_table(position.state.params))
        if setup.data.buckets:
            report.say(setup.data.buckets.describe(setup.task.lengths))
        training = Training(setup, identity, position, checkpoints, report, signals, debug_nans)
        best_params, progress = training.run()
        report.say(f"trained to epoch {progress.epoch} in {time.perf_counter() - started:.1f} s")
    signals.unsaved = False
    return best_params, progress


def _foreign_to(known: list[Identity]) -> Callable[[dict[str, Any]], str]:
    """Returns a function that says how a checkpoint differs from all these identities, or ""."""

    def is_foreign(facts: dict[str, Any]) -> str:
        saved = Identity(facts["config"], facts["fingerprint"])
        changes = [differences(saved, identity) for identity in known]
        return "" if [] in changes else "; ".join(changes[0][:3])

    return is_foreign


def conclude(setup: Setup, params: Any, progress: Progress, workdir: Path) -> dict[str, Any]:
    """Returns the metrics of every split; prints them and the task's examples."""
    task, evaluator = setup.task, setup.evaluator
    predict = cache(lambda split: evaluator.predict(params, task.splits[split]))

    def mean_metrics(split: str, dropout: bool) -> dict[str, float]:
        key = jax.random.key(setup.config.seed) if dropout else None
        return evaluator.metrics(params, task.splits[split], key)

    result: dict[str, Any] = summarize_splits(setup, mean_metrics, predict) | {
        "best_epoch": progress.best_epoch,
        "num_epochs": progress.epoch,
        "num_parameters": count_parameters(params),
    }
    for line in task.show_examples(params, predict, workdir):
        print(one_line(line))
    for split in task.splits:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in result[split].items())
        print(f"{split} (epoch {progress.best_epoch}): {numbers}")
    return result


def summarize_splits(
    setup: Setup, mean_metrics: Callable[[str, bool], dict[str, float]], predict: Predict
) -> dict[str, Any]:
    """Returns the metrics of every split.

    `mean_metrics` returns those of a split without or with dropout; `predict` the task's outputs.
    """
    result: dict[str, Any] = {}
    for split in setup.task.splits:
        result[split] = mean_metrics(split, False)
        if setup.config.train.dropout_at_test:
            with_dropout = mean_metrics(split, True)
            result[split] |= {f"{name}_dropout": value for name, value in with_dropout.items()}
        result[split] |= setup.task.corpus_metrics(predict, split, result[split])
    return result


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
    start_jax(config.train)
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
    params = shard(found.arrays["best_params"], setup.mesh, WHOLE)
    return params, Progress(**found.facts["progress"])


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
