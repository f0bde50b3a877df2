"""Tuning: what is tried, what is saved, and that runs take it."""

import pytest
from support.toys import use_linear_task

from experiments.benchmark import tune as tuning
from experiments.benchmark.table import show
from experiments.benchmark.tune import candidates, tune, tune_table
from seqjax.distributed.choices import Choice, Shape, choose, choose_by_rule
from seqjax.tasks.registry import make_task
from seqjax.training.setup import task_shape

CONFIG = """
from seqjax.config import base_config

def get_config(variant="default"):
    config = base_config("linear")
    config.train.update(batch_size=8, num_devices=1)
    return config
"""


@pytest.mark.parametrize("batch_size", [1, 5, 32, 100])
@pytest.mark.parametrize("num_devices", [1, 2, 6])
def test_candidates_are_different_programs_and_begin_with_the_rule(batch_size, num_devices):
    shape = Shape(batch_size, 28, 128, 1)
    found = candidates(shape, num_devices)
    assert found[0] == choose_by_rule(shape)
    effects = [tuning._effect(choice, shape) for choice in found]
    assert len(effects) == len(set(effects))
    others = {choice.num_devices for choice in found[1:]}
    assert others <= {1, 2, 4, min(num_devices, batch_size)} and all(
        x <= batch_size for x in others
    )


@pytest.mark.parametrize(("gain", "is_chosen"), [(0.98, False), (0.5, True)])
def test_runs_take_what_was_measured(gain, is_chosen, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use_linear_task(monkeypatch)
    path = tmp_path / "mine.py"
    path.write_text(CONFIG, encoding="utf-8")
    made = []

    def measure(task, config, found, num_rounds):
        made.extend(found)
        times = really_measure(task, config, found[:2], 1)
        assert all(seconds > 0 for seconds in times.values())
        return dict.fromkeys(found, 1.0) | {found[2]: gain}

    really_measure = tuning._measure
    monkeypatch.setattr(tuning, "_measure", measure)
    (tuned,) = tune([str(path)], 1, lambda line: None)
    assert tuned.best == made[2 if is_chosen else 0]
    config = tuning.read_config(str(path))
    config.train.num_devices = 0
    chosen = choose(task_shape(make_task(config), config), config.train)
    assert chosen == Choice(*tuned.best[:2], "measurement")
    show(tune_table([tuned]))
    lines = [line for line in capsys.readouterr().out.splitlines() if "yes" in line]
    assert len(lines) == 1 and f"{gain if is_chosen else 1:.2f}" in lines[0]
