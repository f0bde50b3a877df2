"""Why a step was given up: which number of it was none first. Imports: train, parameters."""

import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from seqjax.data.batches import take_rows
from seqjax.parameters import named_arrays
from seqjax.train import Measure, TrainData, TrainState, make_objective


def diagnose(
    measure: Measure,
    data: TrainData,
    state: TrainState,
    key: Key[Array, ""],
    num_devices: int,
    operations: bool,
) -> str:
    """What is no number in the step that led to `state`, whose parameters it left as they were.

    With `operations` the step is made once more, operation by operation, to find the first one.
    """
    order_key, step_key = jax.random.split(key)
    step = int(state.step) - 1
    epoch, place = divmod(step, data.steps_per_epoch)
    index, weight = (x[place] for x in data.order(order_key, epoch, num_devices))
    batch = take_rows(data.rows, np.asarray(index), np.asarray(weight))
    arguments = (jax.device_get(state.params), batch, np.int32(step), step_key)
    loss_and_gradient = jax.value_and_grad(make_objective(measure), has_aux=True)
    (loss, _), gradient = jax.jit(loss_and_gradient)(*arguments)
    found = [] if np.isfinite(loss) else [f"the loss is {float(loss)}"]
    found += first_bad(arguments[0], "the parameter")[:1] or first_bad(gradient, "the gradient of")
    what = " and ".join(found[:2]) or "a sum over the devices is no number"
    where = f"step {step + 1} (epoch {epoch + 1}, batch {place + 1})"
    told = f"at {where} {what}"
    return f"{told}; {_operation(loss_and_gradient, arguments)}" if operations else told


def first_bad(tree: Any, what: str) -> list[str]:
    """The first array of a nest with an element that is no finite number, in a list; or none."""
    for name, x in named_arrays(tree):
        bad = np.asarray(x)[~np.isfinite(x)]
        if bad.size:
            return [f"{what} {name} has {bad.size} of {np.size(x)} elements such as {bad.flat[0]}"]
    return []


def _operation(function: Any, arguments: Any) -> str:
    """The first operation with a result that is no number, and where it stands in the source."""
    try:
        with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            function(*arguments)
    except FloatingPointError as error:
        here = str(Path(__file__).parent)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if here in f.filename]
        operation = str(error).strip().splitlines()[0]
        last = frames[-1]
        return f"{operation}, called in {Path(last.filename).name}, line {last.lineno}: {last.line}"
    return "no single operation of it gives one"
