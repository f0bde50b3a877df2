"""Why a step was given up: which number of it was none first."""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from seqjax.data.batching import take_rows
from seqjax.parameters import named_arrays
from seqjax.training.epoch import TrainData
from seqjax.training.train_step import LossAndMetrics, TrainState, batch_keys, make_objective


def diagnose(
    loss_and_metrics: LossAndMetrics,
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
    index, weight, bucket = (x[place] for x in data.order(order_key, epoch, num_devices))
    batch = take_rows(data.rows, np.asarray(index), np.asarray(weight))
    keys = batch_keys(jax.random.fold_in(step_key, step), batch, None)
    if data.buckets:
        batch = data.buckets.crop(batch, int(bucket))
    arguments = (jax.device_get(state.params), batch, jnp.int32(step), keys)
    loss_and_gradient = jax.value_and_grad(make_objective(loss_and_metrics), has_aux=True)
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


def _foreign(filename: str) -> bool:
    path = Path(filename)
    return "jax" in path.parts or ("site-packages" in path.parts and "seqjax" not in path.parts)


def _operation(function: Any, arguments: Any) -> str:
    """The first operation with a result that is no number, and where it stands in the source."""
    # Infinities may be meant, as the maximum of nothing is: they count only where no NaN is found.
    for debug in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), debug(True):
                function(*arguments)
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            # The last frame outside of installed packages is the model's or the loss's own.
            last = [frame for frame in frames if not _foreign(frame.filename)][-1]
            place = f"{Path(last.filename).name}, line {last.lineno}: {last.line}"
            return f"{str(error).strip().splitlines()[0]}, called in {place}"
    return "no single operation of it gives one"
