"""Configs: the fields that they share, how they are loaded, and the checks of their values.

A config is a nested, locked ConfigDict of `seed, task, model, data, optim, train`, and `loss` and
`decode` for text. Sections are passed on as keyword arguments, so an unread field is an error. A
choice that has options of its own (a cell, an initializer, an optimizer, a schedule) is a spec such
as `gru(reset_after=False)`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name
from seqjax.files import read_json
from seqjax.hparams import LARGEST_INT, check_number

LARGEST_SEED = 2**32 - 1
# The fields that configs of earlier versions lack, by full name, each with the value that keeps the
# behaviour of those versions: {"train.log_every_steps": 0}. Names are added and never removed.
LATER_FIELDS: dict[str, Any] = {
    "train.log_every_steps": 0,
    "train.trial_mapping": "auto",
    "train.compute_dtype": "float32",
}
# The fields of configs of earlier versions that are no longer read, by full name.
REMOVED_FIELDS = ("train.compilation_cache_dir",)
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def base_config(task: str) -> ConfigDict:
    """Returns the fields that all configs share, with their defaults.

    Each task defines the fields of `data` itself.

    `train.compute_dtype` is the dtype of the operands of matrix products, in training, evaluation
    and decoding; all else stays in float32. JAX multiplies float32 operands in TF32 on NVIDIA GPUs
    that have it, unless JAX_DEFAULT_MATMUL_PRECISION is set, and in float32 on a CPU. Over 5 seeds
    each of recall, word_completion, svo_tagging, word_translation and sentence_translation, the
    median training loss with bfloat16 is within 0.001 nats of that with float32
    (`python -m experiments.sweep --config=... --sweep=configs/sweeps/compute_dtype.py`).
    """
    config = ConfigDict()
    config.task = task  # a name in seqjax/tasks
    config.seed = 0  # seeds weights, order and dropout; data.split_seed seeds the splits
    config.model = {
        "cell": "lstm",  # simple_rnn, lstm(forget_bias=1.0), gru(reset_after=True)
        "hidden_size": 128,
        "num_layers": 1,
        "bidirectional": False,
        "input_dropout": (0.0,),  # one rate for all layers, or one rate per layer
        "output_dropout": (0.0,),
        "state_dropout": (0.0,),
        "kernel_init": "glorot_uniform",  # joined_glorot_uniform initialises as the cells of TF1
        "recurrent_init": "orthogonal",  # one orthogonal matrix per gate
        "output_kernel_init": "glorot_uniform",  # the dense layer on top of the recurrent stack
        "output_bias_init": "zeros",
    }
    config.data = {}
    config.optim = {
        "name": "adam",  # sgd, momentum, adam, keras_adam, adamw, rmsprop, each with options
        "learning_rate": 1e-3,
        "schedule": "constant",  # warmup, cosine, exponential, plateau, each with options
        "clip_norm": 0.0,  # largest norm of the whole gradient; 0 = off
        "clip_value": 0.0,  # largest absolute value of each gradient element; 0 = off
        "accumulate_steps": 1,  # batches per update
        "ema_decay": 0.0,  # evaluate an exponential moving average of the parameters; 0 = off
    }
    config.train = {
        "batch_size": 32,
        "num_epochs": 10,
        "eval_every_epochs": 1,  # also the largest number of epochs in one compiled call
        "checkpoint_every_epochs": 5,  # checkpoints are written at evaluations and at the end
        "checkpoint_every_minutes": 10.0,  # also in the middle of an epoch; 0 = off
        # SPLIT.METRIC of the weights after an epoch that selects the best; "epoch" keeps the last
        "monitor": "valid.loss",
        "monitor_mode": "min",  # min or max
        "patience": 0,  # evaluations without improvement before training stops; 0 = never stop
        "min_delta": 0.0,  # smallest change that counts as an improvement
        "drop_remainder": False,  # True leaves out the last, smaller batch of an epoch
        "num_buckets": 1,  # length buckets; the train step is compiled for each of them
        "microbatch_size": 0,  # rows per gradient computation on a device; 0 = chosen likewise
        "dropout_at_test": False,  # True adds metrics with dropout switched on, as *_dropout
        "max_skipped_steps": 0,  # steps with a NaN or infinity to skip; one more ends the run
        "steps_per_call": 0,  # steps per call of the program; 0 = about two seconds per call
        "log_every_epochs": 0,  # epochs per line without a terminal; 0 = about 20 lines in all
        "log_every_steps": 0,  # steps per line of steps.jsonl, with norms of gradients; 0 = off
        "loop": "epoch",  # epoch: all rows are on each device; step: they are read batch by batch
        "num_devices": 0,  # over all processes; a CPU core is one; 0 = chosen by machine and shape
        "trial_mapping": "auto",  # trials on one device of a sweep: map, vmap; auto: by device
        "backend": "auto",  # scan, fused, xla (either of the two) or cudnn; auto: by device
        "compute_dtype": "float32",  # of operands of matrix products: float32, bfloat16
        "remat": False,  # True recomputes steps in the backward pass: memory O(sqrt(T)), not O(T)
    }
    return config


def text_pairs_config(name: str) -> ConfigDict:
    """Returns the fields of text-to-text configs with their defaults.

    `name` is a shipped corpus or a file.
    """
    config = base_config("text_pairs")
    del config.model.output_dropout
    config.model.update(
        embed_size=64,  # 0 reads one-hot vectors
        attention="none",  # none, dot, general, additive
        input_feeding=False,  # feeds the attention output into the decoder's next step
        share_embeddings=False,  # True uses one embedding for both sides; needs one vocabulary
        tie_output=False,  # True uses the target embedding as the output kernel
        token_dropout=0.0,  # share of source tokens replaced by the unknown token in training
        encoder_output_dropout=(0.0,),
        decoder_output_dropout=(0.0,),
    )
    config.data = {
        # cafe, wiki, words, sentences, tutorial_words, tutorial_sentences, reversed, or a file
        "name": name,
        "pairs": (),  # ((source, target), ...) to use instead of `name`
        "labels": "",  # a file with one intent per pair; "": the corpus's own, if it has any
        "form": "lines",  # form of the file: lines, csv, tsv
        "source_column": "",  # "": q,a or question,answer or source,target
        "target_column": "",
        "encoding": "utf-8",  # or another codec of Python, such as cp949
        "max_megabytes": 64.0,  # largest size of a file
        "valid_share": 0.0,
        "test_share": 0.0,
        "train_size": 0,  # training pairs to use; 0: all pairs that are not held out
        "split_seed": 0,
        "source_vocabulary": "characters",  # jamo, whitespace, words, byte_bpe(), unigram(), ...
        "target_vocabulary": "",  # "": one vocabulary for both sides
        "max_source_length": 0,  # in tokens; 0: the length of the longest training text
        "max_target_length": 0,  # in tokens, including start and end
        "source_padding": "post",  # post or pre
        "vocab_size": 0,  # smallest size of the embeddings and of the output
        "boundaries": True,  # start and end symbols; False only to reproduce a tutorial
        "ask": (),  # sources without targets, which are answered at the end
    }
    config.loss = {
        "label_smoothing": 0.0,  # in training only
        "scheduled_sampling": "off",  # constant(probability=), linear(final=, num_steps=), ...
        "mask_padding": True,  # False reads padding and counts it in the loss, as tutorials do
    }
    config.decode = {
        # or beam(beam_size=4, length_penalty=0.6), sample(temperature=0.8, top_k=20, top_p=0.9)
        "decoder": "greedy",
        "min_length": 1,  # tokens in the shortest reply; 1: no empty replies
        "repetition_penalty": 1.0,
        "no_repeat_ngram": 0,
        "ban_unknown": True,
    }
    return config


def choose_variant(
    config: ConfigDict, variant: str, variants: Sequence[FunctionType]
) -> ConfigDict:
    """Returns the config, changed by the variant of that name; "default" changes nothing.

    Raises UserError for an unknown name.
    """
    table = {"default": lambda config: None} | {change.__name__: change for change in variants}
    if variant not in table:
        raise unknown_name("variant", variant, table)
    table[variant](config)
    return config


def load_config(path: Path) -> ConfigDict:
    """Returns the locked config of a run's file; raises UserError if it cannot be read."""
    if not path.exists():
        raise UserError(f"{path} does not exist: is {path.parent} a run directory?")
    fields = read_json(path)
    if not isinstance(fields, dict) or not {"task", "seed", "model", "data", "train"} <= set(
        fields
    ):
        raise UserError(f"{path} is not a config of a run: give the directory of a run")
    try:
        return make_config(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def make_config(fields: Mapping[str, Any]) -> ConfigDict:
    """Returns a locked config of fields that were read from JSON.

    Raises UserError for a field that is missing, of another type or out of range.
    """
    fields = with_present_fields(with_tuples(fields))
    like = text_pairs_config("") if fields.get("task") == "text_pairs" else base_config("")
    _check_types(fields, like.to_dict())
    check_values(fields)
    try:
        return ConfigDict(fields).lock()
    except ValueError as error:  # the name of a field contains a dot
        raise UserError(str(error)) from None


def with_present_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config of any version with LATER_FIELDS and without REMOVED_FIELDS.

    Fields of a section that the config does not have, because its task has none, are not added.
    """
    fields = dict(fields)
    for name in REMOVED_FIELDS:
        section, _, field = name.partition(".")
        if isinstance(old := fields.get(section), Mapping):
            fields[section] = {n: value for n, value in old.items() if n != field}
    for name, value in LATER_FIELDS.items():
        section, _, field = name.partition(".")
        if isinstance(old := fields.get(section), Mapping) and field not in old:
            fields[section] = {**old, field: value}
    return fields


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config's fields as JSON stores them: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def check_values(fields: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for a number that is out of range or not finite, and for a text with control
    characters."""
    for name, value in fields.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            check_values(value, f"{where}.")
        elif isinstance(value, str) and CONTROL.search(value):
            raise UserError(f"{where}={value!r} contains a control character: remove it")
        else:
            check_number(where, value, LARGEST_SEED if name.endswith("seed") else LARGEST_INT)


def find_field(config: ConfigDict, name: str) -> Any:
    """Returns the value of the field `a.b.c` of a config.

    Raises UserError for a section, and for an unknown name, with the most similar one.
    """
    value: Any = config
    for key in name.split("."):
        if not isinstance(value, ConfigDict) or key not in value:
            raise unknown_name("config field", name, _field_names(config))
        value = value[key]
    if isinstance(value, ConfigDict):
        raise UserError(f"config field {name} is a section: set a field of it, such as {name}.X")
    return value


def change_fields(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns the locked config with changes, by the full names of fields.

    Raises UserError for a field that it does not have, and for a value that is not of its type.
    """
    changed = config.copy_and_resolve_references()
    for name, value in changes.items():
        if not isinstance(name, str):
            raise UserError(f"the sweep sets {name!r}: write a field's path, as 'model.cell'")
        value, default = plain_value(value), find_field(config, name)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            kind = type(default).__name__
            raise UserError(f"the sweep sets {name}={value!r}, but {name} is of type {kind}")
        *path, field = name.split(".")
        section = changed
        for part in path:
            section = section[part]
        with section.unlocked():
            section[field] = value
    check_values(changed.to_dict())
    return changed.lock()


def plain_value(value: Any) -> Any:
    """Returns a value, or those of a tuple, as Python's own types instead of NumPy's."""
    if isinstance(value, tuple):
        return tuple(map(plain_value, value))
    return value.item() if isinstance(value, np.generic) else value


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        full = f"{prefix}{name}"
        names += _field_names(value, f"{full}.") if isinstance(value, ConfigDict) else [full]
    return names


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a line `field: old -> new`, with its full name, for each field that differs."""
    lines = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_fields(a, b, f"{prefix}{name}.")
        elif a != b or type(a) is not type(b):
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines


def with_tuples(value: Any) -> Any:
    """Returns the value with tuples in place of lists.

    JSON has no tuples, and configs have no lists.
    """
    if isinstance(value, dict):
        return {name: with_tuples(field) for name, field in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _check_types(fields: Mapping[str, Any], like: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError unless `fields` has every field of `like`, each of the same type."""
    for name, default in like.items():
        where = f"{prefix}{name}"
        if name not in fields:
            raise UserError(f"{where} is missing: is the config of another version of seqjax?")
        value = fields[name]
        if type(value) is not type(default):
            expected = "section" if isinstance(default, dict) else type(default).__name__
            raise UserError(f"{where}={value!r} must be of type {expected}")
        if isinstance(default, dict):
            _check_types(value, default, f"{where}.")
