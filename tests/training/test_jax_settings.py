"""Training under JAX's settings for debugging: without compilation, and with 64-bit types."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.same_runs import read_result
from support.toys import linear_config, linear_task, tiny_config, use_linear_task

import seqjax.plots
import seqjax.training.fit
from seqjax.distributed.mesh import make_mesh
from seqjax.sweeps.sweep import train_group
from seqjax.tasks.registry import TASKS, make_task
from seqjax.training.epoch import Program
from seqjax.training.fit import fit, load_run
from seqjax.training.logger import read_records
from seqjax.training.trials import Trial

TOLERANCE = 1e-5


def numbers(value: Any) -> Iterator[float]:
    """Yields all numbers of a JSON value, in order."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def assert_alike(one: Path, other: Path) -> None:
    """Asserts that two runs have the same records and results, within a tolerance."""
    for read in (lambda run: read_records(run / "metrics.jsonl"), read_result):
        ours, theirs = ([*numbers(read(run))] for run in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


@pytest.fixture(autouse=True)
def jax_has_started(monkeypatch):
    monkeypatch.setattr(seqjax.training.fit, "start_jax", lambda train: None)
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


SIZES = {"train": 3, "valid": 2, "test": 2}  # operations are dispatched one by one


def few_steps(**train: Any) -> ConfigDict:
    return linear_config(num_epochs=2, eval_every_epochs=1, batch_size=2, num_devices=1, **train)


def test_a_program_is_compiled_once_and_takes_no_other_shapes():
    program = Program(lambda x: 2 * x, make_mesh(1))
    assert program.compile_seconds == 0
    assert program(np.int32(1)) == 2
    seconds = program.compile_seconds
    assert program(np.int32(2)) == 4 and program.compile_seconds == seconds > 0
    with pytest.raises(TypeError, match="int32.*float32"):
        program(np.float32(3))
    with jax.disable_jit():
        assert Program(lambda x: 2 * x, make_mesh(1))(3) == 6


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["epoch", "step"])
def test_a_run_is_trained_without_jit(loop, tmp_path):
    config = few_steps(loop=loop)
    fit(linear_task(SIZES), config, tmp_path / "compiled")
    with jax.disable_jit():
        fit(linear_task(SIZES), config, tmp_path / "run")
    assert_alike(tmp_path / "run", tmp_path / "compiled")


@pytest.mark.slow
def test_a_group_of_trials_is_trained_without_jit(tmp_path, monkeypatch):
    use_linear_task(monkeypatch)
    monkeypatch.setitem(TASKS, "linear", lambda config, directory: linear_task(SIZES))
    config = few_steps()
    fit(linear_task(SIZES), config, tmp_path / "compiled")
    trials = [Trial(config, tmp_path / "run"), Trial(few_steps(), tmp_path / "other")]
    with jax.disable_jit():
        train_group(trials, tmp_path / "group", lambda trial, records: None)
    assert_alike(tmp_path / "run", tmp_path / "compiled")


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("recall", "keras_adam"), pytest.param("reverse", "adam", marks=pytest.mark.slow)],
)
def test_training_with_64_bit_types_stays_in_float32(name, optimizer, tmp_path):
    config = tiny_config(name, num_epochs=2).unlock()
    config.optim.name = optimizer
    settings: dict[str, AbstractContextManager] = {"run": jax.enable_x64(True), "32": nullcontext()}
    for directory, setting in settings.items():
        with setting:
            workdir = tmp_path / directory
            fit(make_task(config, workdir), config, workdir)
            run = load_run(workdir)
            dtypes = {np.asarray(x).dtype for x in jax.tree.leaves(run.params)}
        assert dtypes == {np.dtype("float32")}
    assert_alike(tmp_path / "run", tmp_path / "32")
