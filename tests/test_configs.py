"""Configs: each loads, locks, runs and names its command, and every field of it is read."""

import runpy

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support.same_runs import COSTS
from support.toys import (
    CONFIGS,
    few_digits,
    get_config,
    linear_config,
    linear_task,
    read_json,
    tiny_config,
    trace_step,
)

import seqjax.plots
import seqjax.runs.identity
from seqjax.config import as_json, choose_variant, differing_fields, load_config
from seqjax.data import images
from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError
from seqjax.files import write_json
from seqjax.parameters import parameter_shapes
from seqjax.tasks.registry import TASKS, make_task
from seqjax.training.fit import fit, make_setup

NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
VARIANTS = [
    (name, variant)
    for name in NAMES
    for variant in (
        "default",
        *(f.__name__ for f in runpy.run_path(str(CONFIGS / f"{name}.py")).get("VARIANTS", ())),
    )
]
every_config = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


@pytest.fixture(autouse=True)
def few_images_and_empty_pictures(monkeypatch):
    monkeypatch.setattr(images, "load_mnist", few_digits)
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


@every_config
def test_the_docstring_names_the_command(name):
    docstring = runpy.run_path(str(CONFIGS / f"{name}.py"))["__doc__"]
    assert f"python -m experiments.train --config=configs/{name}.py" in docstring


@every_config
def test_the_config_names_a_task(name):
    assert get_config(name).task in TASKS


@every_variant
def test_a_config_locks_and_refuses_unknown_fields(name, variant):
    config = get_config(name, variant).lock()
    more = {"loss", "decode"} if config.task == "text_pairs" else set()
    assert set(config) == {"task", "seed", "model", "data", "optim", "train"} | more
    with pytest.raises(AttributeError, match="hiden_size"):
        config.model.hiden_size = 3
    with pytest.raises(KeyError, match="nothing"):
        config["nothing"] = 1
    if variant != "default":
        assert differing_fields(get_config(name).to_dict(), config.to_dict())


@every_variant
def test_a_step_of_a_config_can_be_compiled(name, variant):
    config = tiny_config(name, variant)
    setup = make_setup(make_task(config), config)
    state = setup.arrays_like()["state"]
    after, log = trace_step(config, setup)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert log.metrics["loss"].total.shape == ()


TRAINED = [
    pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] != "default" else [])
    for pair in VARIANTS
]


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_a_config_trains_an_epoch(name, variant, tmp_path, capsys):
    config = tiny_config(name, variant, eval_every_epochs=1)
    task = make_task(config)
    result = fit(task, config, tmp_path / "run")
    counts = {"best_epoch", "num_epochs", "num_parameters"}
    assert set(result) == {*task.splits, *counts, *COSTS}
    assert result["best_epoch"] == result["num_epochs"] == 1
    assert np.isfinite([result[split]["loss"] for split in task.splits]).all()
    assert read_json(tmp_path / "run" / "result.json") == result
    if config.train.dropout_at_test:
        assert "loss_dropout" in result["train"]
    if config.task == "text_pairs":
        assert {"exact_match", "bleu", "chrf", "perplexity", "finished"} <= set(result["train"])
    assert "\ntrain (epoch 1): " in capsys.readouterr().out


SECTIONS = [
    (name, section)
    for name in NAMES
    for section in ("model", "data", "optim", "loss", "decode")
    if section in get_config(name)
]


@pytest.mark.parametrize(("name", "section"), SECTIONS)
def test_a_field_that_nothing_reads_is_an_error(name, section):
    config = tiny_config(name)
    with config.unlocked():
        config[section].misspelt = 1
    with pytest.raises((TypeError, UserError), match="misspelt"):
        make_setup(make_task(config), config)


@pytest.mark.parametrize(("name", "section"), SECTIONS)
def test_every_field_is_needed(name, section):
    missing = (TypeError, AttributeError, UserError)
    fields = ["decoder"] if section == "decode" else get_config(name)[section]
    for field in fields:  # the other options of decoding have defaults
        config = tiny_config(name)
        with config.unlocked():
            del config[section][field]
        with pytest.raises(missing, match=field):
            make_setup(make_task(config), config)


def test_every_field_of_train_and_of_the_top_is_read(tmp_path, monkeypatch, capsys):
    config = linear_config(num_epochs=2, min_delta=100.0)  # the second epoch counts as worse
    read, get = set(), ConfigDict.__getitem__

    def record(self, key):
        if self is config or self is get(config, "train"):
            read.add(key)
        return get(self, key)

    # Code that reads all fields, to write or compare them, does not count.
    written = {"train": {"compute_dtype": "float32"}}  # environment.json has it too
    monkeypatch.setattr(seqjax.runs.identity, "as_json", lambda config: written)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(ConfigDict, "__getitem__", record)
    start_jax(config.train.num_devices)
    fit(linear_task(), config, tmp_path / "run")
    monkeypatch.undo()
    # The task reads `data`, `model`, `backend` and `remat`; make_task reads `task`.
    unread = {"task", "model", "data", "backend", "remat"}
    assert {*config, *config.train} - read == unread


@every_config
def test_every_task_reads_how_to_run_its_model(name):
    for field, value, known in (
        ("backend", "fusd", "fused"),
        ("compute_dtype", "bf16", "bfloat16"),
    ):
        told = rf"unknown train.{field} '{value}'.*{known}"
        with pytest.raises(UserError, match=told):
            parameter_shapes(make_task(tiny_config(name, **{field: value})).init)


@every_variant
def test_a_config_comes_back_from_its_file(name, variant, tmp_path):
    config = get_config(name, variant)
    write_json(tmp_path / "config.json", as_json(config))
    loaded = load_config(tmp_path / "config.json")
    assert differing_fields(config.to_dict(), loaded.to_dict()) == []
    assert loaded.to_dict() == config.to_dict()
    assert loaded.is_locked and loaded.model.is_locked
    assert isinstance(loaded.model.input_dropout, tuple)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config.json does not exist: is .* a run directory\?"),
        ("{", r"config.json is damaged: "),
        ("\udcff", r"config.json is damaged: "),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(text, message, tmp_path):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_differing_fields_are_named_in_full_with_both_values():
    old = {"seed": 0, "model": {"cell": "lstm", "rates": (0.0,), "gone": 1}, "train": {"x": 1}}
    new = {"seed": 0, "model": {"cell": "gru", "rates": (0.5,), "new": 2}, "train": {"x": 1}}
    assert differing_fields(old, new) == [
        "model.cell: 'lstm' -> 'gru'",
        "model.gone: 1 -> None",
        "model.new: None -> 2",
        "model.rates: (0.0,) -> (0.5,)",
    ]
    assert differing_fields(old, old) == []


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), ((1,), [1]), ({"b": 1}, 1)])
def test_values_of_different_types_differ(a, b):
    assert len(differing_fields({"a": a}, {"a": b})) == 1


def test_an_unknown_variant_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match="unknown variant 'lstn': did you mean 'lstm'"):
        get_config("mnist_rows", "lstn")
    with pytest.raises(UserError, match="unknown variant 'x': known: default"):
        choose_variant(ConfigDict(), "x", ())
