"""A whole run: train, keep the best, evaluate, report. Imports: everything above; knows no task."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.array_types import Params
from seqjax.checkpoint import Checkpoints
from seqjax.data.batches import check_batch_size, num_rows
from seqjax.errors import UserError, unknown_name
from seqjax.evaluate import Evaluator
from seqjax.mesh import WHOLE, make_mesh, put
from seqjax.metrics import Average, Metrics, summarize
from seqjax.optim import Optimizer, make_optimizer
from seqjax.parameters import count_parameters, parameter_shapes, parameter_table
from seqjax.pictures import draw_curves
from seqjax.progress import Progress, advance, check_finite, check_monitor
from seqjax.report import Report
from seqjax.run_directory import open_run_directory, write_json
from seqjax.task import Task
from seqjax.train import LOOPS, TrainData, TrainState, init_train_state


class Setup(NamedTuple):
    """A run's parts, made from a task and a config."""

    task: Task
    config: ConfigDict
    optimizer: Optimizer
    data: TrainData
    mesh: jax.sharding.Mesh
    evaluator: Evaluator


def fit(task: Task, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or resumes, the config's run in `workdir`; what result.json holds.

    The result is of the best weights by `train.monitor`. Raises UserError for a config that cannot
    be run, a directory that cannot be used, and a loss that is no number any more.
    """
    setup = make_setup(task, config)
    open_run_directory(workdir, config)
    if (workdir / "result.json").exists():
        print(f"{workdir} holds the finished run of this config; nothing to do")
        return json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    task.save(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        state, best_params, progress = _start(setup, checkpoints)
        with Report(
            workdir,
            first_epoch=progress.epoch,
            num_epochs=config.train.num_epochs,
            rows_per_epoch=num_rows(setup.data.rows),
            headline=task.headline,
        ) as report:
            report.say(parameter_table(state.params))
            started = time.perf_counter()
            best_params, progress = _train(
                setup, state, best_params, progress, checkpoints, report, workdir
            )
            seconds = time.perf_counter() - started
            report.say(f"trained to epoch {progress.epoch} in {seconds:.1f} s")
    finally:
        checkpoints.close()
    draw_curves(report.records, ("loss", task.headline), workdir / "curves.png")
    result = conclude(setup, best_params, progress, workdir)
    write_json(workdir / "result.json", result)
    print(f"written to {workdir}: {', '.join(sorted(p.name for p in workdir.iterdir()))}")
    return result


def make_setup(task: Task, config: ConfigDict) -> Setup:
    """The parts of a run; raises UserError where a setting cannot be used."""
    train, rows = config.train, task.splits["train"]
    check_batch_size(train.batch_size, num_rows(rows))
    for field in ("num_epochs", "eval_every_epochs", "checkpoint_every_epochs"):
        if train[field] < 1:
            raise UserError(f"train.{field}={train[field]} must be at least 1")
    if train.monitor_mode not in ("min", "max"):
        raise UserError(f"train.monitor_mode={train.monitor_mode!r} must be 'min' or 'max'")
    if train.loop not in LOOPS:
        raise unknown_name("train.loop", train.loop, LOOPS)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must lie between 0 and {2**32 - 1}")
    check_monitor(task, train.monitor)
    mesh = make_mesh(train.num_devices)
    data = TrainData(rows, train.batch_size, train.drop_remainder)
    optimizer = make_optimizer(
        **config.optim, steps_per_epoch=data.steps_per_epoch, num_epochs=train.num_epochs
    )
    evaluator = Evaluator(task.measure, task.predict, train.batch_size, mesh)
    return Setup(task, config, optimizer, data, mesh, evaluator)


def conclude(setup: Setup, params: Any, progress: Progress, workdir: Path) -> dict[str, Any]:
    """What the parameters reach on every split; prints it with what the task shows a person."""
    task, evaluator = setup.task, setup.evaluator
    predict = cache(lambda split: evaluator.predict(params, task.splits[split]))
    result: dict[str, Any] = {}
    for split, rows in task.splits.items():
        result[split] = evaluator.metrics(params, rows)
        if setup.config.train.dropout_at_test:
            alive = evaluator.metrics(params, rows, jax.random.key(setup.config.seed))
            result[split] |= {f"{name}_dropout": value for name, value in alive.items()}
        result[split] |= task.score(predict, split, result[split])
    result |= {
        "best_epoch": progress.best_epoch,
        "num_epochs": progress.epoch,
        "num_parameters": count_parameters(params),
    }
    lines = task.show(params, predict, workdir)
    print("\n".join(lines))
    for split in task.splits:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in result[split].items())
        print(f"{split} (epoch {progress.best_epoch}): {numbers}")
    return result


def evaluate(task: Task, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What the best weights of a run reach, finished or not; UserError if it has no checkpoint."""
    setup = make_setup(task, config)
    params, progress = restore_best(setup, workdir)
    return conclude(setup, params, progress, workdir)


def restore_best(setup: Setup, workdir: Path) -> tuple[Params, Progress]:
    """A run's best weights so far, and how far it is; UserError if it has no checkpoint."""
    directory = workdir / "checkpoints"
    restored = None
    if directory.is_dir():
        restored = Checkpoints(directory, read_only=True).restore(_arrays_like(setup))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: train it first")
    return put(restored[0]["best_params"], setup.mesh, WHOLE), Progress(**restored[1])


def _arrays_like(setup: Setup) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint holds."""
    params = parameter_shapes(setup.task.init)
    state = jax.eval_shape(lambda p: init_train_state(p, setup.optimizer), params)
    return {"state": state, "best_params": params}


def _start(setup: Setup, checkpoints: Checkpoints) -> tuple[TrainState, Any, Progress]:
    """State, best parameters and progress: the newest checkpoint's, or new ones."""
    restored = checkpoints.restore(_arrays_like(setup))
    if restored:
        arrays, progress = restored[0], Progress(**restored[1])
        print(f"resuming after epoch {progress.epoch}")
    else:
        params = jax.jit(setup.task.init)(jax.random.key(setup.config.seed))
        state = init_train_state(params, setup.optimizer)
        arrays, progress = {"state": state, "best_params": params}, Progress()
    arrays = put(arrays, setup.mesh, WHOLE)
    return arrays["state"], arrays["best_params"], progress


def _train(
    setup: Setup,
    state: TrainState,
    best_params: Any,
    progress: Progress,
    checkpoints: Checkpoints,
    report: Report,
    workdir: Path,
) -> tuple[Any, Progress]:
    """Calls the loop, `eval_every_epochs` epochs at a time, until the last or an early stop."""
    train = setup.config.train
    loop = LOOPS[train.loop](setup.task.measure, setup.optimizer, setup.data, setup.mesh)
    key = jax.random.key(setup.config.seed)
    saved_epoch = progress.epoch
    while progress.epoch < train.num_epochs and not progress.stopped:
        num_epochs = min(train.eval_every_epochs, train.num_epochs - progress.epoch)
        state, metrics = loop(state, key, num_epochs)
        metrics = jax.device_get(metrics)
        records = _records(setup, metrics, progress.epoch, state)
        params = setup.optimizer.eval_params(state.params, state.opt_state)
        if "valid" in setup.task.splits:
            records[-1]["valid"] = setup.evaluator.metrics(params, setup.task.splits["valid"])
        check_finite(metrics, records[-1], progress.epoch, saved_epoch, workdir)
        report.add(records)
        progress = advance(progress, records[-1], train)
        if progress.best_epoch == progress.epoch:
            best_params = jax.tree.map(lambda x: x.copy(), params)  # the loop donates the state
        finished = progress.stopped or progress.epoch == train.num_epochs
        if finished or progress.epoch - saved_epoch >= train.checkpoint_every_epochs:
            arrays = {"state": state, "best_params": best_params}
            checkpoints.save(progress.epoch, arrays, progress._asdict())
            saved_epoch = progress.epoch
    if progress.stopped:
        report.say(f"stopped early: {train.monitor} was best at epoch {progress.best_epoch}")
    return best_params, progress


def _records(setup: Setup, metrics: Metrics, epoch: int, state: TrainState) -> list[dict[str, Any]]:
    """One record an epoch from the metrics [epochs, steps] of one call."""
    num_epochs = len(next(iter(metrics.values())).total)
    return [
        {
            "epoch": epoch + i + 1,
            "step": (epoch + i + 1) * setup.data.steps_per_epoch,
            "learning_rate": setup.optimizer.learning_rate(
                state.opt_state, (epoch + i + 1) * setup.data.steps_per_epoch - 1
            ),
            "train": summarize({n: Average(x.total[i], x.weight[i]) for n, x in metrics.items()}),
        }
        for i in range(num_epochs)
    ]
