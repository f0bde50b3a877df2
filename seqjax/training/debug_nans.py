"""Finds the first value of a training step that was not finite."""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.data.batching import take_rows
from seqjax.errors import is_library
from seqjax.hparams import HParams
from seqjax.parameters import named_arrays
from seqjax.training.epoch import Place, TrainData
from seqjax.training.train_step import (
    LossAndMetrics,
    RunKeys,
    TrainState,
    batch_keys,
    make_objective,
)


def diagnose(
    loss_and_metrics: LossAndMetrics,
    data: TrainData,
    state: TrainState,
    keys: RunKeys,
    place: Place,
    num_devices: int,
    operations: bool,
    hparams: HParams = HParams(),
) -> str:
    """Describes what was not finite in the last step before `state`, which was skipped.

    `place` is that of the step. With `operations` the step is run again, one operation at a time,
    to find the first one with a non-finite result.
    """
    step = int(state.step) - 1
    order = data.order(keys.data, place.epoch, num_devices)
    index, weight, bucket = (x[place.step] for x in order)
    batch = take_rows(data.rows, np.asarray(index), np.asarray(weight))
    row_keys = batch_keys(jax.random.fold_in(keys.dropout, step), batch, None)
    if data.buckets:
        batch = data.buckets.crop(batch, int(bucket))
    arguments = (jax.device_get(state.params), batch, row_keys, jnp.int32(step), hparams)
    loss_and_gradient = jax.value_and_grad(make_objective(loss_and_metrics), has_aux=True)
    (loss, _), gradient = jax.jit(loss_and_gradient)(*arguments)
    causes = [] if np.isfinite(loss) else [f"the loss is {float(loss)}"]
    causes += first_bad(arguments[0], "the parameter") or first_bad(gradient, "the gradient of")
    what = " and ".join(causes) or "a sum over the devices is not finite"
    message = f"at step {step + 1} (epoch {place.epoch + 1}, batch {place.step + 1}) {what}"
    return f"{message}; {_operation(loss_and_gradient, arguments)}" if operations else message


def first_bad(tree: Any, what: str) -> list[str]:
    """Describes the first array of a pytree that has a non-finite element; a list of 0 or 1."""
    for name, x in named_arrays(tree):
        bad = np.asarray(x)[~np.isfinite(x)]
        if bad.size:
            return [f"{what} {name} has {bad.size} of {np.size(x)} elements such as {bad.flat[0]}"]
    return []


def _operation(function: Any, arguments: Any) -> str:
    """Names the first operation with a non-finite result and its place in the source."""
    # An infinity may be intended (the maximum of an empty array), so NaNs are searched for first.
    for debug in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), debug(True):
                function(*arguments)
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            # The last frame outside libraries belongs to the model or the loss.
            last = [frame for frame in frames if not is_library(frame.filename)][-1]
            place = f"{Path(last.filename).name}, line {last.lineno}: {last.line}"
            return f"{str(error).strip().splitlines()[0]}, called in {place}"
    return "no single operation of the step gives one"
