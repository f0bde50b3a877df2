"""Runs and trials with train.compute_dtype=bfloat16."""

from pathlib import Path

import jax
import numpy as np
import pytest
from support.same_runs import read_result
from support.toys import get_config, linear_config, linear_task, read_json

import seqjax.distributed.devices
import seqjax.plots
from seqjax.distributed.devices import bfloat16_note
from seqjax.errors import UserError
from seqjax.runs.identity import Identity, differences
from seqjax.sweeps.sweep import train_group
from seqjax.training.fit import fit
from seqjax.training.trials import Trial

BAND = 1e-3  # nats between the medians, as seqjax/config.py says


def test_a_run_records_its_precision_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
    task, train = linear_task(), {"num_epochs": 1}
    fit(task, linear_config(**train, compute_dtype="bfloat16"), tmp_path)
    assert capsys.readouterr().out.count("train.compute_dtype=bfloat16: this CPU ") == 1
    precision = {"compute_dtype": "bfloat16", "jax_default_matmul_precision": "default"}
    assert read_json(tmp_path / "environment.json")["matrix_precision"] == precision
    with pytest.raises(UserError, match="train.compute_dtype: 'bfloat16' -> 'float32'"):
        fit(task, linear_config(**train), tmp_path)


def test_a_run_of_before_was_in_float32():
    config = linear_config().to_dict()
    old = {**config, "train": {k: v for k, v in config["train"].items() if k != "compute_dtype"}}
    assert differences(Identity(old, {}), Identity(config, {})) == []
    config["train"]["compute_dtype"] = "bfloat16"
    line = "train.compute_dtype: 'float32' -> 'bfloat16'"
    assert differences(Identity(old, {}), Identity(config, {})) == [line]


def test_a_cpu_says_where_bfloat16_is_slower(monkeypatch):
    low = linear_config(compute_dtype="bfloat16").train
    assert bfloat16_note(linear_config().train) == ""
    for flags, told in (
        ({"amx_bf16"}, "faster with float32 for small layers"),
        ({"avx2"}, "no bfloat16"),
    ):
        monkeypatch.setattr(seqjax.distributed.devices, "cpu_flags", lambda found=flags: found)
        assert told in bfloat16_note(low)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bfloat16_note(low) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["word_completion", "svo_tagging"])
def test_losses_of_three_seeds_lie_in_the_band(name, tmp_path):
    medians = []
    for compute_dtype in ("float32", "bfloat16"):
        trials = []
        for seed in range(3):
            config = get_config(name)
            config.seed, config.train.compute_dtype = seed, compute_dtype
            trials.append(Trial(config.lock(), Path(tmp_path / compute_dtype / str(seed))))
        train_group(trials, tmp_path / f"group-{compute_dtype}")
        losses = [read_result(trial.directory)["train"]["loss"] for trial in trials]
        medians.append(np.median(losses))
    float32, bfloat16 = medians
    assert 0 < abs(bfloat16 - float32) < BAND
