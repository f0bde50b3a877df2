"""Seconds to the first step: of every config, with an empty cache and a full one."""

import json
import subprocess
from pathlib import Path

import pytest
from support.toys import CONFIGS

from experiments.benchmark import first_step
from experiments.benchmark.first_step import (
    FirstStep,
    find_configs,
    measure_first_steps,
    read_config,
)
from experiments.benchmark.table import show
from seqjax.errors import UserError


def test_every_config_and_variant_is_found():
    known = find_configs([])
    assert {name.partition(":")[0] for name in known} == {
        path.stem for path in CONFIGS.glob("*.py")
    }
    assert {"recall", "mnist_rows", "mnist_rows:lstm", "svo_tagging:large"} <= set(known)
    assert find_configs(["recall"]) == ["recall"]


def test_a_config_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(UserError, match=r"mine\.py is not a file"):
        find_configs([str(path)])
    path.write_text("def get_config(variant='a'): return variant", encoding="utf-8")
    assert find_configs([f"{path}:b"]) == [f"{path}:b"]
    assert [read_config(f"{path}{variant}") for variant in ("", ":b")] == ["a", "b"]
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.py is not a config: it defines no get_config"):
        read_config(str(path))


def test_slow_configs_are_marked(tmp_path, capsys):
    steps = [FirstStep("a", 15.1, 9.0, 4.0, 1.0), FirstStep("b:c", 14.9, 9.0, 4.0, 1.0)]
    show(first_step.first_step_table(steps))
    shown = capsys.readouterr().out
    assert "above 15 s" in shown
    marked = {line.split()[1]: "yes" in line for line in shown.splitlines() if " s " in line}
    assert marked["a"] and not marked["b:c"]
    path = first_step.save_first_steps(steps, {"cores": 2}, tmp_path / "new")
    saved = json.loads(path.read_text())
    assert saved["machine"]["cores"] == 2 and saved["first_steps"][1]["config"] == "b:c"


@pytest.mark.slow
def test_the_second_start_finds_its_programs_compiled(monkeypatch):
    hits = []
    start = first_step._start

    def count_files(name, cache):
        found = start(name, cache)
        hits.append(sorted(path.name for path in Path(cache).glob("*-cache")))
        return found

    monkeypatch.setattr(first_step, "_start", count_files)
    (step,) = measure_first_steps(["recall"], lambda line: None)
    assert step.config == "recall" and hits[0] and hits[0] == hits[1]
    assert 0 < step.cold_compile_seconds < step.cold_seconds
    assert 0 < step.warm_compile_seconds < step.warm_seconds


def test_a_config_that_fails_is_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: too\tlarge\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(UserError, match="^recall has no first step: ValueError: too large$"):
        measure_first_steps(["recall"], print)
