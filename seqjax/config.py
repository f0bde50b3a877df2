"""Configs: the sections they all share, their files, and what may not be in them.

A config is a nested, locked ConfigDict of `seed, task, model, data, optim, train`. Sections are
passed on as keywords, so a field that nothing reads is an error; choices with options of their own
(cells, initialisers, optimizers, schedules) are specs such as `gru(reset_after=False)`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from ml_collections import ConfigDict

from seqjax.errors import UserError, unknown_name
from seqjax.files import read_json
from seqjax.hparams import LARGEST_INT, check_number

LARGEST_SEED = 2**32 - 1
# Fields that a config of an earlier version lacks, by full name, each with the value that means
# what that version did: {"train.log_every_steps": 0}. Names are added here, and never removed.
LATER_FIELDS: dict[str, Any] = {}
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


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
        "checkpoint_every_epochs": 5,  # at evaluations, and at the end
        "checkpoint_every_minutes": 10.0,  # also in the middle of an epoch; 0 = off
        "monitor": "valid.loss",  # SPLIT.METRIC of the best weights; "epoch" keeps the last
        "monitor_mode": "min",  # min or max
        "patience": 0,  # evaluations without a better one before stopping; 0 = never stop
        "min_delta": 0.0,  # what counts as better
        "drop_remainder": False,  # True leaves out the last, smaller batch
        "num_buckets": 1,  # shapes of batches, by the lengths of their rows; compiled each
        "microbatch_size": 0,  # rows of a device at a time in the gradient; 0 = by device
        "dropout_at_test": False,  # True adds the metrics under live dropout, as *_dropout
        "max_skipped_steps": 0,  # of a loss or gradient that is no number; one more ends the run
        "steps_per_call": 0,  # of the compiled program; 0 = as many as take about two seconds
        "log_every_epochs": 0,  # a line where the output is no terminal; 0 = about 20 in all
        "loop": "epoch",  # one program an epoch; "step" for data larger than the device
        "num_devices": 0,  # of all processes; 0 = all; on a CPU its cores
        "backend": "auto",  # of the recurrence: scan, fused, cudnn; auto chooses by device
        "remat": False,  # True computes steps twice: memory grows with sqrt(T), not with T
        "compilation_cache_dir": "auto",  # in the user's cache folder; "" = off
    }
    return config


def text_pairs_config(name: str) -> ConfigDict:
    """The fields of text to text, with their plain defaults, for a shipped corpus or a file."""
    config = base_config("text_pairs")
    del config.model.output_dropout
    config.model.update(
        embed_size=64,  # 0 reads one-hot symbols
        attention="none",  # none, dot, general, additive
        input_feeding=False,  # of what attention found into the decoder's next step
        share_embeddings=False,  # needs one vocabulary
        tie_output=False,  # the target's embedding is also the output's kernel
        token_dropout=0.0,  # share of source tokens read as unknown in training
        encoder_output_dropout=(0.0,),
        decoder_output_dropout=(0.0,),
    )
    config.data = {
        "name": name,  # cafe, wiki, words, sentences, tutorial_words, tutorial_sentences, or a file
        "pairs": (),  # ((source, target), ...) to be used instead
        "labels": "",  # a file of one intent a pair; "": those that ship with the corpus, if any
        "form": "lines",  # of a file: lines, csv, tsv
        "source_column": "",  # "": q,a or question,answer or source,target
        "target_column": "",
        "encoding": "utf-8",  # or cp949
        "max_megabytes": 64.0,  # of each file
        "valid_share": 0.0,
        "test_share": 0.0,
        "train_size": 0,  # training pairs to use; 0: all that are not held out
        "split_seed": 0,
        "source_vocabulary": "characters",  # jamo, whitespace, words, byte_bpe(), unigram(), ...
        "target_vocabulary": "",  # "": the source's, for both
        "max_source_length": 0,  # tokens; 0: the longest of the training texts
        "max_target_length": 0,  # with start and end
        "source_padding": "post",  # or pre
        "vocab_size": 0,  # rows of embeddings and outputs at least
        "boundaries": True,  # start and end symbols; False only as R4 has it
        "ask": (),  # sources without targets, to be answered at the end
    }
    config.loss = {
        "label_smoothing": 0.0,
        "scheduled_sampling": "off",  # constant(probability=), linear(final=, num_steps=), ...
        "mask_padding": True,  # False reads padding and counts it in the loss, as the tutorials do
    }
    config.decode = {
        "decoder": "greedy",  # or beam(beam_size=4, length_penalty=0.6)
        "min_length": 1,  # no empty reply
        "repetition_penalty": 1.0,
        "no_repeat_ngram": 0,
        "ban_unknown": True,
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


def load_config(path: Path) -> ConfigDict:
    """The locked config of a run's file; raises UserError if there is none."""
    if not path.exists():
        raise UserError(f"{path} does not exist: is {path.parent} a run directory?")
    fields = read_json(path)
    if not isinstance(fields, dict) or not {"task", "seed", "model", "data", "train"} <= set(
        fields
    ):
        raise UserError(f"{path} is no config of a run: give the directory of a run")
    try:
        return make_config(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def make_config(fields: Mapping[str, Any]) -> ConfigDict:
    """A locked config of what JSON says it is; raises UserError for what no config holds."""
    fields = with_later_fields(with_tuples(fields))
    like = text_pairs_config("") if fields.get("task") == "text_pairs" else base_config("")
    _check_types(fields, like.to_dict())
    check_values(fields)
    try:
        return ConfigDict(fields).lock()
    except ValueError as error:  # a dot in the name of a field
        raise UserError(str(error)) from None


def with_later_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, and those of LATER_FIELDS that its version of seqjax did not have.

    A section that the config does not have at all, as that of another task, gets none.
    """
    fields = dict(fields)
    for name, value in LATER_FIELDS.items():
        section, _, field = name.partition(".")
        if isinstance(there := fields.get(section), Mapping) and field not in there:
            fields[section] = {**there, field: value}
    return fields


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config's fields as they come back from JSON, which has no tuples."""
    return json.loads(json.dumps(config.to_dict()))


def check_values(fields: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for what no field means: a number that no array can hold, or a name with
    control characters."""
    for name, value in fields.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            check_values(value, f"{where}.")
        elif isinstance(value, str) and CONTROL.search(value):
            raise UserError(f"{where}={value!r} holds a control character: remove it")
        else:
            check_number(where, value, LARGEST_SEED if name.endswith("seed") else LARGEST_INT)


def find_field(config: ConfigDict, name: str) -> Any:
    """The field `a.b.c` of a config; raises UserError, with the nearest name, if it has none."""
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise unknown_name("config field", name, _field_names(config))
        value = value[part]
    if isinstance(value, ConfigDict):
        raise UserError(f"config field {name} is a section: set one of its fields, as {name}.X")
    return value


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        full = f"{prefix}{name}"
        names += _field_names(value, f"{full}.") if isinstance(value, ConfigDict) else [full]
    return names


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


def with_tuples(value: Any) -> Any:
    """JSON has no tuples, and a config has no lists."""
    if isinstance(value, dict):
        return {name: with_tuples(field) for name, field in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _check_types(fields: Mapping[str, Any], like: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError unless there is every field that `like` has, of its type."""
    for name, known in like.items():
        where = f"{prefix}{name}"
        if name not in fields:
            raise UserError(f"{where} is missing: is the config of another version of seqjax?")
        value, kind = fields[name], type(known)
        if type(value) is not kind:
            kind = "section" if kind is dict else kind.__name__
            raise UserError(f"{where}={value!r} must be of type {kind}")
        if isinstance(known, dict):
            _check_types(value, known, f"{where}.")
