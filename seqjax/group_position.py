"""Where a group of trials is, in memory and in checkpoints. Imports: checkpoint, members."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seqjax.array_types import Params
from seqjax.checkpoint import Checkpoints, newest, set_aside_after
from seqjax.members import stack
from seqjax.mesh import SPLIT, put
from seqjax.optim import Optimizer
from seqjax.progress import Progress
from seqjax.stop_signals import say
from seqjax.train import StepLog, TrainState, init_train_state
from seqjax.training import log_from_json, log_to_json


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
    params: Sequence[Params], optimizer: Optimizer, mesh: Mesh, num_trials: int
) -> GroupPosition:
    """Before the first step, with the initial weights of all members."""
    states = [init_train_state(own, optimizer) for own in params]
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

    arrays = put(fill(found.arrays), mesh, SPLIT)
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
