"""Which configs one program trains together, and what they share.

The trials of a program have a seed each and may differ in some numbers (`OPTIMIZER_FIELDS`,
`LOSS_FIELDS`), which are arrays of the program; everything else is one config.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.hparams import HParams, parse_spec
from seqjax.tasks.base import Task
from seqjax.training.setup import find_mapping

# Numbers in which the trials of one program may differ. A number that is 0 removes its part of the
# program, so it is 0 in all trials of a group or in none.
OPTIMIZER_FIELDS = (  # in the optimizer's state
    "optim.learning_rate",
    "optim.clip_norm",
    "optim.clip_value",
    "optim.ema_decay",
)
OPTIMIZER_OPTION = "weight_decay"  # an option of the spec `optim.name`, in the state too
LOSS_FIELDS = (  # arguments of the loss
    "loss.label_smoothing",
    "model.token_dropout",
    "model.input_dropout",
    "model.state_dropout",
    "model.output_dropout",
    "model.encoder_output_dropout",
    "model.decoder_output_dropout",
)
NUM_DEVICES = 0  # over which the trials of a program are divided; 0 = all
# Fields that are read before training only.
INITIAL_FIELDS = ("seed", *(f"model.{name}_init" for name in ("kernel", "recurrent")))
INITIAL_FIELDS += ("model.output_kernel_init", "model.output_bias_init")


def group_key(config: ConfigDict) -> str:
    """Returns what the configs of one program have in common, as text."""
    fields = as_json(config)
    for name in INITIAL_FIELDS:
        section, field = _place(fields, name)
        section.pop(field, None)
    for name in (*OPTIMIZER_FIELDS, *LOSS_FIELDS):
        section, field = _place(fields, name)
        if field in section:
            section[field] = _pattern(section[field])
    name, args, options = parse_spec(config.optim.name, "optimizer")
    if OPTIMIZER_OPTION in options:
        options[OPTIMIZER_OPTION] = _pattern(options[OPTIMIZER_OPTION])
    fields["optim"]["name"] = [name, args, options]
    return json.dumps(fields, sort_keys=True, default=repr)  # of specs' own values


def shared_config(configs: Sequence[ConfigDict]) -> ConfigDict:
    """Returns the config from which the task and the program of trials are made.

    It is the first one's, but several trials divide all devices, and where they are vmapped `auto`
    chooses a backend that allows it. A single trial takes all devices if there are fewer than its
    config asks for, since any worker may train it.
    """
    shared, several = configs[0].copy_and_resolve_references(), len(configs) > 1
    with shared.unlocked():
        if several or shared.train.num_devices > jax.device_count():
            shared.train.num_devices = NUM_DEVICES or jax.device_count()
        if several and find_mapping(shared.train) == "vmap" and shared.train.backend == "auto":
            shared.train.backend = "xla"
    return shared.lock()


def differing_hparams(configs: Sequence[ConfigDict]) -> HParams:
    """Returns arrays `[N]` of the loss's numbers in which configs of one group key differ."""
    hparams = HParams({}, {})
    for name in LOSS_FIELDS:
        section, field = _place(configs[0], name)
        if field in section:
            values = [_place(config, name)[0][field] for config in configs]
            if any(value != values[0] for value in values):
                getattr(hparams, name.split(".")[0])[field] = _as_arrays(values)
    return hparams


def _as_arrays(values: Sequence[Any]) -> Any:
    """Returns numbers as a float32 array [N], equally long tuples as a tuple of such arrays."""
    if isinstance(values[0], tuple):
        return tuple(_as_arrays(column) for column in zip(*values, strict=True))
    return np.array(values, np.float32)


def _pattern(value: Any) -> Any:
    """Returns which of the numbers are 0."""
    return [_pattern(v) for v in value] if isinstance(value, list) else value == 0


def _place(fields: Any, name: str) -> tuple[Any, str]:
    """Returns the section of a field `a.b`, or an empty one, and the field's own name."""
    *path, field = name.split(".")
    for part in path:
        fields = fields.get(part, {})
    return fields, field


def check_hparams(task: Task, name: str, hparams: HParams) -> None:
    """Raises UserError for numbers that the loss of the task of this name does not read."""
    differ = {f"{section}.{field}" for section, own in hparams._asdict().items() for field in own}
    if unread := sorted(differ - set(task.hparams)):
        raise UserError(
            f"trials that differ in {unread[0]} cannot share a program: the task {name} does not "
            "read it from `hparams`, see Task.hparams"
        )
