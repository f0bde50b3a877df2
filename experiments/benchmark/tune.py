"""Measures how the work of configs is best divided on this machine, for `distributed.choices`."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from experiments.benchmark.first_step import read_config
from seqjax.distributed.choices import Choice, Shape, choose_by_rule, save_choice
from seqjax.distributed.devices import start_jax
from seqjax.tasks.base import Task
from seqjax.tasks.registry import make_task
from seqjax.training.epoch import START
from seqjax.training.position import begin
from seqjax.training.programs import DataParallel
from seqjax.training.setup import make_setup, task_shape
from seqjax.training.train_step import make_keys

MICROBATCH_SIZES = (8, 16, 32, 64, 128, 0)  # 0: all rows
LEAST_GAIN = 0.97  # of the rule's time: what is closer to it may be noise
_TURN_SECONDS = 0.5


class Tuned(NamedTuple):
    """The times of a config's choices."""

    config: str
    seconds: dict[Choice, float]  # a step: the rule's choice first
    best: Choice


def tune(names: Sequence[str], num_rounds: int, say: Callable[[str], None]) -> list[Tuned]:
    """Measures each config and saves the best choices, which `auto` takes from then on.

    The rule's choice stays the best unless another one takes less than 0.97 of its time.
    """
    start_jax(0)
    found = []
    for name in names:
        say(f"{name}: tuning")
        config = read_config(name)
        config.train.update(num_devices=0, microbatch_size=0)
        task = make_task(config.lock())
        shape = task_shape(task, config)
        seconds = _measure(task, config, candidates(shape, jax.device_count()), num_rounds)
        rule, best = next(iter(seconds)), min(seconds, key=lambda choice: seconds[choice])
        best = best if seconds[best] < LEAST_GAIN * seconds[rule] else rule
        save_choice(shape, best)
        found.append(Tuned(name, seconds, best))
    return found


def candidates(shape: Shape, num_devices: int) -> list[Choice]:
    """Returns the rule's choice, and others that make another program of so many devices."""
    rule = choose_by_rule(shape)
    found = {_effect(rule, shape): rule}
    powers = [2**k for k in range(num_devices.bit_length()) if 2**k <= shape.batch_size]
    for count in sorted({*powers, min(num_devices, shape.batch_size)}):
        for size in MICROBATCH_SIZES:
            choice = Choice(count, size, "measurement")
            found.setdefault(_effect(choice, shape), choice)
    return list(found.values())


def _effect(choice: Choice, shape: Shape) -> tuple[int, int]:
    """Returns the devices and the rows of a gradient, by which programs differ."""
    rows = -(-shape.batch_size // choice.num_devices)
    return choice.num_devices, min(choice.microbatch_size or rows, rows)


def _measure(
    task: Task, config: ConfigDict, choices: Sequence[Choice], num_rounds: int
) -> dict[Choice, float]:
    """Returns the median seconds of a train step with each choice, measured in turns."""
    trainers = {choice: _Steps(task, config, choice) for choice in choices}
    num_steps, most = 1, trainers[choices[0]].max_steps
    while (seconds := trainers[choices[0]].run(num_steps)) < _TURN_SECONDS and num_steps < most:
        num_steps = min(most, 1 + int(num_steps * min(4, _TURN_SECONDS / seconds)))
    times: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for _ in range(num_rounds):
        for choice, steps in trainers.items():
            times[choice].append(steps.run(num_steps) / num_steps)
    return {choice: statistics.median(found) for choice, found in times.items()}


class _Steps:
    """The train steps of a config with one choice, after the first one."""

    def __init__(self, task: Task, config: ConfigDict, choice: Choice):
        setup = make_setup(task, config, choice)
        params = jax.jit(task.init)(make_keys(config.seed).init)
        self._program = DataParallel(setup)
        self._state = begin(self._program, [params], [setup.optimizer]).state
        self.max_steps = setup.data.steps_per_epoch
        self.run(1)

    def run(self, num_steps: int) -> float:
        """Makes the first steps of an epoch; returns the seconds that they took."""
        started = time.perf_counter()
        active = np.ones(1, bool)
        self._state, log = self._program.train(self._state, START, num_steps, active)
        jax.block_until_ready((self._state, log))
        return time.perf_counter() - started


def tune_table(found: Sequence[Tuned]) -> Table:
    """Returns a line a choice, the fastest first of each config."""
    table = Table("config", "devices", "rows at once", "ms a step", "x rule", "chosen")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds, best in found:
        by_rule = next(iter(seconds.values()))
        for choice in sorted(seconds, key=lambda choice: seconds[choice]):
            sizes = str(choice.num_devices), str(choice.microbatch_size or "all")
            times = f"{seconds[choice] * 1e3:,.4g}", f"{seconds[choice] / by_rule:.2f}"
            table.add_row(name, *sizes, *times, "yes" if choice == best else "")
        table.add_section()
    return table
