"""Seconds to the first train step of every config, with an empty compilation cache and a full one.

Run as a program, `first_step CONFIG CACHE`, it makes the first step of one run.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.table import Table

from experiments.benchmark.machine import child_environment
from seqjax.errors import UserError, one_line, unknown_name
from seqjax.files import write_json

CONFIGS = Path(__file__).parents[2] / "configs"
MOST_SECONDS = 15.0  # with an empty cache, on two quiet cores


class FirstStep(NamedTuple):
    """A config's first train step; seconds count from the start of its process."""

    config: str
    cold_seconds: float
    cold_compile_seconds: float  # of these, in XLA's compiler
    warm_seconds: float
    warm_compile_seconds: float  # of these, for reading the cache


def find_configs(names: Sequence[str]) -> list[str]:
    """Returns `NAME` and `NAME:VARIANT` of all shipped configs, or only those of these names.

    A name may also be a path, `FILE.py` or `FILE.py:VARIANT`. Raises UserError for an unknown one.
    """
    known = []
    for path in sorted(CONFIGS.glob("*.py")):
        variants = runpy.run_path(str(path)).get("VARIANTS", ())
        known += [path.stem, *(f"{path.stem}:{variant.__name__}" for variant in variants)]
    for name in names:
        path = Path(name.partition(":")[0])
        if path.suffix == ".py" and not path.is_file():
            raise UserError(f"--workloads: {path} is not a file")
        if name not in known and path.suffix != ".py":
            raise unknown_name("config", name, known)
    return list(names) or known


def read_config(name: str) -> ConfigDict:
    """Returns the config of a name of `find_configs`, not locked.

    Raises UserError for a file that defines none.
    """
    config, _, variant = name.partition(":")
    path = config if config.endswith(".py") else str(CONFIGS / f"{config}.py")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(f"{path} is not a config: it defines no get_config()")
    return get_config(variant) if variant else get_config()


def measure_first_steps(names: Sequence[str], say: Callable[[str], None]) -> list[FirstStep]:
    """Starts each config twice, with an empty cache and then with the cache of the first start.

    Raises UserError for a config whose process ends without a step.
    """
    found = []
    for name in names:
        say(f"{name}: first step")
        with tempfile.TemporaryDirectory(prefix="seqjax-") as cache:
            found.append(FirstStep(name, *_start(name, cache), *_start(name, cache)))
    return found


def _start(name: str, cache: str) -> tuple[float, float]:
    """Returns the seconds to the end of the first step of a new process, and those of compiling."""
    command = [sys.executable, "-m", "experiments.benchmark.first_step", name, cache]
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment({}))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{name} has no first step: {one_line(last)}")
    told = json.loads(done.stdout.splitlines()[-1])
    return told["ended_at"] - start, told["compile_seconds"]


def first_step_table(steps: Sequence[FirstStep]) -> Table:
    """Returns a line a config; those above the limit are marked."""
    limit = f"above {MOST_SECONDS:g} s"
    table = Table("config", "cold", "compiling", "warm", "reading the cache", limit)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *seconds in steps:
        mark = "yes" if seconds[0] > MOST_SECONDS else ""
        table.add_row(name, *(f"{x:.1f} s" for x in seconds), mark)
    return table


def save_first_steps(steps: Sequence[FirstStep], machine: dict[str, Any], directory: Path) -> Path:
    """Writes `first_steps.json`; returns where to."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "first_steps.json"
    write_json(path, {"machine": machine, "first_steps": [step._asdict() for step in steps]})
    return path


def make_first_step(name: str, cache: str) -> float:
    """Makes the first step of a run as `fit` does; returns the seconds spent on compiling."""
    import jax
    import numpy as np

    from seqjax.distributed.devices import COMPILATION_CACHE, start_jax
    from seqjax.tasks.registry import make_task
    from seqjax.training.epoch import START
    from seqjax.training.position import begin
    from seqjax.training.programs import DataParallel
    from seqjax.training.setup import make_setup
    from seqjax.training.train_step import make_keys

    compiling = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    config = read_config(name)
    os.environ[COMPILATION_CACHE] = cache
    start_jax(config.lock().train.num_devices)
    setup = make_setup(make_task(config), config)
    program = DataParallel(setup)
    params = jax.jit(setup.task.init)(make_keys(config.seed).init)
    now = begin(program, [params], [setup.optimizer])
    _, log = program.train(now.state, START, 1, np.ones(1, bool))
    program.log(log, 1)
    return sum(compiling)


if __name__ == "__main__":
    told = {"compile_seconds": make_first_step(*sys.argv[1:]), "ended_at": time.time()}
    print(json.dumps(told))
