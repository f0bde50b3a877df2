"""Configs: the sections they all share, their files, and what may not be in them.

A config is a nested, locked ConfigDict of `seed, task, model, data, optim, train`. Sections are
passed on as keywords, so a field that nothing reads is an error; choices with options of their own
(cells, initialisers, optimizers, schedules) are specs such as `gru(reset_after=False)`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name


def base_config(task: str) -> ConfigDict:
    """The fields every config shares, with their plain defaults; `data` is the task's own."""
    config = ConfigDict()
    config.task = task  # a name in seqjax/tasks
    config.seed = 0  # of weights, order and dropout; splits have data.split_seed
    config.model = {
        "cell": "lstm",  # simple_rnn, lstm(forget_bias=1.0), gru(reset_after=True)
        "hidden_size": 128,
        "num_layers": 1,
        "bidirectional": False,
        "input_dropout": (0.0,),  # one rate for all layers, or one for each
        "output_dropout": (0.0,),
        "state_dropout": (0.0,),
        "kernel_init": "glorot_uniform",  # joined_glorot_uniform is TF1's cells'
        "recurrent_init": "orthogonal",  # gate by gate
        "output_kernel_init": "glorot_uniform",  # of the dense layer on top
        "output_bias_init": "zeros",
    }
    config.data = {}
    config.optim = {
        "name": "adam",  # sgd, momentum, adam, keras_adam, adamw, rmsprop, each with options
        "learning_rate": 1e-3,
        "schedule": "constant",  # warmup, cosine, exponential, plateau, each with options
        "clip_norm": 0.0,  # of the whole gradient; 0 = off
        "clip_value": 0.0,  # of each element; 0 = off
        "accumulate_steps": 1,  # batches per update
        "ema_decay": 0.0,  # evaluate a running mean of the parameters; 0 = off
    }
    config.train = {
        "batch_size": 32,
        "num_epochs": 10,
        "eval_every_epochs": 1,  # also the epochs that run in one compiled call
        "checkpoint_every_epochs": 5,  # and at the end
        "monitor": "valid.loss",  # SPLIT.METRIC of the best weights; "epoch" keeps the last
        "monitor_mode": "min",  # min or max
        "patience": 0,  # evaluations without a better one before stopping; 0 = never stop
        "min_delta": 0.0,  # what counts as better
        "drop_remainder": False,  # True leaves out the last, smaller batch
        "dropout_at_test": False,  # True adds the metrics under live dropout, as *_dropout
        "loop": "epoch",  # one program an epoch; "step" for data larger than the device
        "num_devices": 0,  # 0 = all; on a CPU its cores
        "compilation_cache_dir": "auto",  # in the user's cache folder; "" = off
    }
    return config


def choose_variant(
    config: ConfigDict, variant: str, variants: Sequence[FunctionType]
) -> ConfigDict:
    """The config, changed by the variant of that name; "default" changes nothing."""
    table = {"default": lambda config: None} | {change.__name__: change for change in variants}
    if variant not in table:
        raise unknown_name("variant", variant, table)
    table[variant](config)
    return config


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def load_config(path: Path) -> ConfigDict:
    """The locked config that `save_config` wrote; raises UserError if there is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} a run directory?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    config = ConfigDict(_with_tuples(fields))
    config.lock()
    return config


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`field: old -> new` for each field, by its full name, that is not the same in both."""
    lines = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_fields(a, b, f"{prefix}{name}.")
        elif a != b or type(a) is not type(b):
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines


def _with_tuples(value: Any) -> Any:
    """JSON has no tuples, and a config has no lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(field) for name, field in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
